//! Attention and its gradients.

mod dtypes;
mod layout;
mod oracle;
mod paged;
mod prefix;
mod refusals;
mod tensor_cores;
mod tensor_cores_bwd;
