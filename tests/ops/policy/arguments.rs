//! Arguments that live as long as the test program, to be spoiled one at a time.

use gradus::dtype::Element;
use gradus::{View, ViewMut};

pub const HELD: f64 = 7.5;

/// A view of data that lives as long as the test program.
pub fn view<T: Element>(data: &[T]) -> View<'static, T> {
    View::from(&*Box::leak(data.to_vec().into_boxed_slice()))
}

pub fn matrix<T: Element>(data: &[T], shape: [i64; 2]) -> View<'static, T> {
    View::new(Box::leak(data.to_vec().into_boxed_slice()), &shape).unwrap()
}

pub fn output(len: usize) -> ViewMut<'static, f64> {
    ViewMut::from(Box::leak(vec![HELD; len].into_boxed_slice()))
}

pub fn held(outputs: &[&[f64]]) {
    assert!(outputs.iter().all(|out| out.iter().all(|&x| x == HELD)), "a refused call wrote");
}
