//! Medians and quantiles.

/// Median; of an even count the mean of the middle two. `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Smallest and largest.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// The values that a quarter and three quarters of them do not exceed, nearest rank: between them lies the middle half.
pub fn quartiles(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let rank = sorted.len().div_ceil(4);
    Some((*sorted.get(rank.checked_sub(1)?)?, *sorted.get(sorted.len() - rank)?))
}

/// The `share` quantile (0 to 1) of sorted values, nearest rank. 0 of nothing.
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_no_values() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn range_holds_both_ends() {
        assert_eq!(range([3.0, 1.0, 2.0]), Some((1.0, 3.0)));
        assert_eq!(range([]), None);
    }

    #[test]
    fn quartiles_hold_the_middle_half() {
        assert_eq!(quartiles((1..=8).rev().map(f64::from)), Some((2.0, 7.0)));
        assert_eq!(quartiles([5.0, 9.0]), Some((5.0, 9.0)));
        assert_eq!(quartiles([5.0]), Some((5.0, 5.0)));
        assert_eq!(quartiles([]), None);
    }

    #[test]
    fn quantile_takes_the_nearest_rank() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&sorted, 1.0)), (50, 99, 100));
        assert_eq!(quantile(&[7], 0.0), 7);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
