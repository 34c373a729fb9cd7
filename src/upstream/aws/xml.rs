//! Just enough XML for the answers of STS: the text of an element that is there once.

/// What stands between `<name …>` and `</name>`.
pub(super) fn text<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = document;
    loop {
        let (_, after) = rest.split_once('<')?;
        rest = after;
        let Some(tail) = after.strip_prefix(name) else { continue };
        if !tail.starts_with(['>', ' ']) {
            continue;
        }
        let (_, inside) = tail.split_once('>')?;
        return inside.split_once(&format!("</{name}>")).map(|(text, _)| text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_is_found_by_its_whole_name() {
        let document = r#"<?xml version="1.0"?><A xmlns="x"><Code2>no</Code2><Code>yes</Code></A>"#;
        assert_eq!(text(document, "Code"), Some("yes"));
        assert_eq!(text(document, "A"), Some("<Code2>no</Code2><Code>yes</Code>"));
        for bad in ["", "<", "<Code", "<Code>", "<Code>x", "Code>x</Code>", "<Codex>x</Code>"] {
            assert_eq!(text(bad, "Code"), None, "{bad}");
        }
    }
}
