//! Bias and activation on a row of a product, and the way back.

use crate::{
    Activation,
    activation::{Function, with_activation},
    kernel::{Math, Real, Uninit, dispatch},
};

/// `line = act(line + bias)`; `kept`, when wanted, receives the argument of the activation.
pub(crate) fn finish<T: Real>(act: Activation, bias: Option<&[T]>, line: &mut [T], kept: Option<&mut [T]>) {
    if let Some(bias) = bias {
        dispatch(
            #[inline(always)]
            |_| {
                for (x, &b) in line.iter_mut().zip(bias) {
                    *x += b;
                }
            },
        );
    }
    if let Some(kept) = kept {
        kept.copy_from_slice(line);
    }
    if act != Activation::Identity {
        // A pass of its own: one loop per activation to compile, over numbers that are still in the nearest cache.
        dispatch(
            #[inline(always)]
            |m| {
                with_activation!(act, f => {
                    for x in line.iter_mut() {
                        *x = f.value(m, *x);
                    }
                })
            },
        );
    }
}

/// `grad * act'(xs)`, element by element.
#[inline(always)]
pub(super) fn backward<'a, T: Real>(m: Math, act: Activation, grad: &[T], xs: &[T], out: Uninit<'a, T>) -> &'a mut [T] {
    with_activation!(act, f => out.map2(
        grad,
        xs,
        #[inline(always)]
        |g, x| g * f.slope(m, x),
    ))
}
