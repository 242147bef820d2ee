use crate::{device::*, dtype::*, error::*, view::*};
pub struct CopyRows<'a, T> {
    pub x: View<'a, T>,
    pub from: Option<View<'a, i32>>,
    pub to: Option<View<'a, i32>>,
    pub y: ViewMut<'a, T>,
}
pub fn copy_rows<T: Float>(_d: &Device, _a: CopyRows<'_, T>) -> Result<()> {
    todo!()
}
pub struct Convert<'a, S, T> {
    pub x: View<'a, S>,
    pub y: ViewMut<'a, T>,
}
pub fn convert<S: Float, T: Float>(_d: &Device, _a: Convert<'_, S, T>) -> Result<()> {
    todo!()
}
#[derive(Debug)]
    From(View<'a, i64>),
    Pages { table: View<'a, i32>, size: usize },
}
