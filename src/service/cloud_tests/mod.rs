//! The cloud profile at the level of the service, with everything that can go wrong around it.

mod disable_tests;
mod faults_tests;
mod grants_tests;
#[cfg(feature = "failpoints")]
mod kills_tests;
mod profile_tests;
mod property_tests;
mod revocation_tests;
mod world_tests;
