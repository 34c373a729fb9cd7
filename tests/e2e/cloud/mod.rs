//! The cloud profile on the stubs of the clouds: every fault of the cloud and of the site, and what becomes of the
//! service.

mod calls;
mod check;
mod faults;
mod home;
mod keys;
mod local;
mod platform;
mod rig;
mod switched;
mod timing;
mod way;
