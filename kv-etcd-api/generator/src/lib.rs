//! See `tests/generated.rs`: there is nothing but the test that writes the code, or compares it.
