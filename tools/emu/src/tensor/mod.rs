//! Tensor-core arithmetic and the layouts around it.
