//! Every function of the list: asks the script, then the real module (docs/adr/0009-fault-shim.md).
#![allow(unsafe_code, non_snake_case, clippy::too_many_arguments)]

use std::ffi::c_void;

use cryptoki_sys::*;

use crate::C_GetFunctionList;
use crate::shim::{Shim, Verdict};

/// For each: what the script says, else what the real module says. SAFETY of all: the caller's arguments go to the real
/// module's function of the same name and type as they are, so that whatever the caller promised it holds there.
macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        $(unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
            let shim = Shim::get();
            if let Verdict::Answer(code) = shim.verdict(stringify!($name)) {
                return code;
            }
            match shim.real.$name {
                // SAFETY: as said above.
                Some(real) => unsafe { real($($argument),*) },
                None => CKR_FUNCTION_NOT_SUPPORTED,
            }
        })*

        /// The list that callers get in place of the real one.
        pub(crate) const FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            C_GetSlotList: Some(get_slot_list),
            C_GetTokenInfo: Some(get_token_info),
            C_FindObjects: Some(find_objects),
            $($name: Some($name)),*
        };
    };
}

/// `empty`: no slot has a token, or there is none at all.
unsafe extern "C" fn get_slot_list(present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG) -> CK_RV {
    let shim = Shim::get();
    match shim.verdict("C_GetSlotList") {
        Verdict::Answer(code) => code,
        Verdict::Empty if !count.is_null() => {
            // SAFETY: not null, and by PKCS#11 the caller's own number.
            unsafe { *count = 0 };
            CKR_OK
        }
        // SAFETY: as of all functions here.
        _ => shim.real.C_GetSlotList.map_or(CKR_FUNCTION_NOT_SUPPORTED, |real| unsafe { real(present, slots, count) }),
    }
}

/// `flags`: set in what the token says of itself.
unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let shim = Shim::get();
    let verdict = shim.verdict("C_GetTokenInfo");
    if let Verdict::Answer(code) = verdict {
        return code;
    }
    // SAFETY: as of all functions here.
    let code = shim.real.C_GetTokenInfo.map_or(CKR_FUNCTION_NOT_SUPPORTED, |real| unsafe { real(slot, info) });
    if let Verdict::Flags(flags) = verdict
        && code == CKR_OK
        && !info.is_null()
    {
        // SAFETY: not null, and the real module has just filled it in.
        unsafe { (*info).flags |= flags };
    }
    code
}

/// `empty`: what is searched for is not there.
unsafe extern "C" fn find_objects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let shim = Shim::get();
    match shim.verdict("C_FindObjects") {
        Verdict::Answer(code) => code,
        Verdict::Empty if !count.is_null() => {
            // SAFETY: not null, and by PKCS#11 the caller's own number.
            unsafe { *count = 0 };
            CKR_OK
        }
        _ => match shim.real.C_FindObjects {
            // SAFETY: as of all functions here.
            Some(real) => unsafe { real(session, objects, most, count) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        },
    }
}

forward! {
    C_Initialize(a: *mut c_void);
    C_Finalize(a: *mut c_void);
    C_GetInfo(a: *mut CK_INFO);
    C_GetSlotInfo(a: CK_SLOT_ID, b: *mut CK_SLOT_INFO);
    C_GetMechanismList(a: CK_SLOT_ID, b: *mut CK_MECHANISM_TYPE, c: *mut CK_ULONG);
    C_GetMechanismInfo(a: CK_SLOT_ID, b: CK_MECHANISM_TYPE, c: *mut CK_MECHANISM_INFO);
    C_InitToken(a: CK_SLOT_ID, b: *mut CK_UTF8CHAR, c: CK_ULONG, d: *mut CK_UTF8CHAR);
    C_InitPIN(a: CK_SESSION_HANDLE, b: *mut CK_UTF8CHAR, c: CK_ULONG);
    C_SetPIN(a: CK_SESSION_HANDLE, b: *mut CK_UTF8CHAR, c: CK_ULONG, d: *mut CK_UTF8CHAR, e: CK_ULONG);
    C_OpenSession(a: CK_SLOT_ID, b: CK_FLAGS, c: *mut c_void, d: CK_NOTIFY, e: *mut CK_SESSION_HANDLE);
    C_CloseSession(a: CK_SESSION_HANDLE);
    C_CloseAllSessions(a: CK_SLOT_ID);
    C_GetSessionInfo(a: CK_SESSION_HANDLE, b: *mut CK_SESSION_INFO);
    C_GetOperationState(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SetOperationState(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: CK_OBJECT_HANDLE, e: CK_OBJECT_HANDLE);
    C_Login(a: CK_SESSION_HANDLE, b: CK_USER_TYPE, c: *mut CK_UTF8CHAR, d: CK_ULONG);
    C_Logout(a: CK_SESSION_HANDLE);
    C_CreateObject(a: CK_SESSION_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG, d: *mut CK_OBJECT_HANDLE);
    C_CopyObject(
        a: CK_SESSION_HANDLE,
        b: CK_OBJECT_HANDLE,
        c: *mut CK_ATTRIBUTE,
        d: CK_ULONG,
        e: *mut CK_OBJECT_HANDLE,
    );
    C_DestroyObject(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE);
    C_GetObjectSize(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ULONG);
    C_GetAttributeValue(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG);
    C_SetAttributeValue(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE, c: *mut CK_ATTRIBUTE, d: CK_ULONG);
    C_FindObjectsInit(a: CK_SESSION_HANDLE, b: *mut CK_ATTRIBUTE, c: CK_ULONG);
    C_FindObjectsFinal(a: CK_SESSION_HANDLE);
    C_EncryptInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Encrypt(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_EncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_EncryptFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_DecryptInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Decrypt(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_DigestInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM);
    C_Digest(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DigestUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_DigestKey(a: CK_SESSION_HANDLE, b: CK_OBJECT_HANDLE);
    C_DigestFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SignInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Sign(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_SignUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_SignFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: *mut CK_ULONG);
    C_SignRecoverInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_SignRecover(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_VerifyInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_Verify(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: CK_ULONG);
    C_VerifyUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_VerifyFinal(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_VerifyRecoverInit(a: CK_SESSION_HANDLE, b: *mut CK_MECHANISM, c: CK_OBJECT_HANDLE);
    C_VerifyRecover(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DigestEncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptDigestUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_SignEncryptUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_DecryptVerifyUpdate(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG, d: *mut CK_BYTE, e: *mut CK_ULONG);
    C_GenerateKey(
        a: CK_SESSION_HANDLE,
        b: *mut CK_MECHANISM,
        c: *mut CK_ATTRIBUTE,
        d: CK_ULONG,
        e: *mut CK_OBJECT_HANDLE,
    );
    C_GenerateKeyPair(
        a: CK_SESSION_HANDLE,
        b: *mut CK_MECHANISM,
        c: *mut CK_ATTRIBUTE,
        d: CK_ULONG,
        e: *mut CK_ATTRIBUTE,
        f: CK_ULONG,
        g: *mut CK_OBJECT_HANDLE,
        h: *mut CK_OBJECT_HANDLE,
    );
    C_WrapKey(
        a: CK_SESSION_HANDLE,
        b: *mut CK_MECHANISM,
        c: CK_OBJECT_HANDLE,
        d: CK_OBJECT_HANDLE,
        e: *mut CK_BYTE,
        f: *mut CK_ULONG,
    );
    C_UnwrapKey(
        a: CK_SESSION_HANDLE,
        b: *mut CK_MECHANISM,
        c: CK_OBJECT_HANDLE,
        d: *mut CK_BYTE,
        e: CK_ULONG,
        f: *mut CK_ATTRIBUTE,
        g: CK_ULONG,
        h: *mut CK_OBJECT_HANDLE,
    );
    C_DeriveKey(
        a: CK_SESSION_HANDLE,
        b: *mut CK_MECHANISM,
        c: CK_OBJECT_HANDLE,
        d: *mut CK_ATTRIBUTE,
        e: CK_ULONG,
        f: *mut CK_OBJECT_HANDLE,
    );
    C_SeedRandom(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_GenerateRandom(a: CK_SESSION_HANDLE, b: *mut CK_BYTE, c: CK_ULONG);
    C_GetFunctionStatus(a: CK_SESSION_HANDLE);
    C_CancelFunction(a: CK_SESSION_HANDLE);
    C_WaitForSlotEvent(a: CK_FLAGS, b: *mut CK_SLOT_ID, c: *mut c_void);
}
