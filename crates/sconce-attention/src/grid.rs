//! What mixers share that read the tokens as a map.

use candle_core::{Result, Tensor, bail};

use crate::{Qkv, TokenLayout};

/// Rows and columns of tokens `(B, N, C)` that all have a place in the picture.
pub(crate) fn rows_and_columns(what: &str, xs: &Tensor, layout: TokenLayout) -> Result<(usize, usize)> {
    let (_, n, _) = xs.dims3()?;
    if layout.prefix != 0 {
        bail!("{what}: {} tokens have no place in the picture; it takes none of those", layout.prefix)
    }
    if n == 0 || n != layout.len() {
        bail!("{what}: {n} tokens are not a map of {} x {}", layout.height, layout.width)
    }
    Ok((layout.height, layout.width))
}

/// The square layout of tokens `(B, N, C)` that come without one.
pub(crate) fn square(what: &str, xs: &Tensor) -> Result<TokenLayout> {
    let (_, n, _) = xs.dims3()?;
    let side = n.isqrt();
    if side * side != n {
        bail!("{what}: {n} tokens are not a square map; give their layout")
    }
    Ok(TokenLayout { prefix: 0, height: side, width: side })
}

/// Splits a projection `(B, N, 3C)`, laid out `which | head | d`.
pub(crate) fn split_heads(qkv: &Tensor, heads: usize) -> Result<Qkv> {
    let (b, n, c3) = qkv.dims3()?;
    let dim = c3 / 3;
    let part = |which: usize| {
        let part = qkv.narrow(2, which * dim, dim)?; // (B, N, C)
        part.reshape((b, n, heads, dim / heads))?.transpose(1, 2) // (B, heads, N, D)
    };
    Ok(Qkv { q: part(0)?, k: part(1)?, v: part(2)? })
}
