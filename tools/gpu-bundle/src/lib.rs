//! Holds nothing: the package is its test executable.
