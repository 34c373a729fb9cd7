//! Configuration: raw file → the settings that each room owns.
