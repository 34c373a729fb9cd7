//! The one symbol that the module exports, and the real module behind it (docs/adr/0009-fault-shim.md).
#![allow(unsafe_code, non_snake_case)]

use std::path::Path;
use std::ptr;

use cryptoki_sys::*;
use libloading::Library;

use crate::forward::FUNCTIONS;
use crate::shim::Shim;

static LIST: CK_FUNCTION_LIST = FUNCTIONS;

/// PKCS#11's entry: gives the shim's function list.
///
/// # Safety
/// As PKCS#11 says: `list` is null or points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    if let Err(problem) = Shim::start() {
        eprintln!("keystead-fault-shim: {problem}");
        return CKR_GENERAL_ERROR;
    }
    // SAFETY: not null, so a place for a pointer. Nobody writes through it: the list is the module's.
    unsafe { *list = ptr::from_ref(&LIST).cast_mut() };
    CKR_OK
}

/// The function list of the module at `path`, which stays loaded for good.
pub(crate) fn load(path: &Path) -> Result<CK_FUNCTION_LIST, String> {
    let problem = |error: libloading::Error| format!("{}: {error}", path.display());
    // SAFETY: loading runs the module's initialisers, which is what the user asks for by naming it.
    let library = unsafe { Library::new(path) }.map_err(problem)?;
    // SAFETY: the symbol has this type in every PKCS#11 module.
    let entry: CK_C_GetFunctionList =
        unsafe { library.get(b"C_GetFunctionList").map(|symbol| *symbol) }.map_err(problem)?;
    let mut list = ptr::null_mut();
    // SAFETY: called as PKCS#11 says, before anything else.
    let code = entry.map_or(CKR_FUNCTION_NOT_SUPPORTED, |entry| unsafe { entry(&mut list) });
    std::mem::forget(library);
    if code != CKR_OK || list.is_null() {
        return Err(format!("{}: C_GetFunctionList gave {code:#x}", path.display()));
    }
    // SAFETY: not null, and valid as long as the module is loaded. Version 2.40's functions are in every later list.
    Ok(unsafe { *list })
}
