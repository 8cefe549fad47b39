//! The real `segue` program, as operators start it.
