//! The emulated GPU: the shipped PTX, executed and checked on the CPU.
