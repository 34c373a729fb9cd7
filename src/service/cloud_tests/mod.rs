//! The cloud profile at the level of the service, with everything that can go wrong around it.

mod deletion_tests;
mod disable_tests;
mod faults_tests;
mod grants_tests;
mod home_property_tests;
#[cfg(feature = "failpoints")]
mod kills_tests;
mod memory_token_tests;
mod profile_tests;
mod property_tests;
mod revocation_tests;
mod roots_tests;
mod schedule_tests;
mod scripted_cloud_tests;
mod world_tests;
