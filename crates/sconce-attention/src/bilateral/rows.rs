//! Which token stands where when attention runs leaf by leaf.

use candle_core::{Result, Tensor, bail};

/// Whom a leaf borrows keys from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// The other half of the group that it was split from.
    Siblings,
    /// Nobody: each image is one leaf.
    None,
    /// The next image of the batch, or the one before.
    Images,
}

impl Pairing {
    pub(super) fn new(batch: usize, leaves: usize, compat: bool) -> Result<Self> {
        match (leaves, compat) {
            (1, true) if !batch.is_multiple_of(2) => {
                bail!(
                    "bilateral attention: single leaves are paired across images as in the official code, and {batch} \
                    images are not pairs; see `BilateralConfig::compat`"
                )
            }
            (1, true) => Ok(Self::Images),
            (1, false) => Ok(Self::None),
            _ => Ok(Self::Siblings),
        }
    }

    /// Image and leaf to borrow from.
    fn partner(self, image: usize, leaf: usize) -> Option<(usize, usize)> {
        match self {
            Self::Siblings => Some((image, leaf ^ 1)),
            Self::None => None,
            Self::Images => Some((image ^ 1, leaf)),
        }
    }
}

/// Row numbers, each a list of `u32`. In a projection `(B, N, 3C)` a row is one head of one query, key or value; rows of the
/// grouped result are ordered `image | head | place`.
#[derive(Debug)]
pub(super) struct Groups {
    /// Rows of the projection that are the queries of each leaf.
    pub(super) queries: Tensor,
    /// Rows of the projection that are the keys of each leaf: its own, then those borrowed.
    pub(super) keys: Tensor,
    /// As `keys`, of the values.
    pub(super) values: Tensor,
    /// Rows of the grouped result in the order `image | token | head`.
    pub(super) places: Tensor,
    /// Tokens of a leaf.
    pub(super) leaf: usize,
    /// Keys that each leaf borrows.
    pub(super) borrowed: usize,
}

impl Groups {
    /// `order` is `(B, heads, N)`.
    pub(super) fn new(order: &Tensor, leaves: usize, overlap: usize, pairing: Pairing) -> Result<Self> {
        let (b, heads, n) = order.dims3()?;
        if u32::try_from(b * n * 3 * heads).is_err() {
            bail!("bilateral attention: {b} x {n} x {heads} queries, keys and values are too many to count")
        }
        let device = order.device();
        let order = order.flatten_all()?.to_vec1::<u32>()?;
        let leaf = n / leaves;
        let borrowed = if pairing == Pairing::None { 0 } else { overlap.min(leaf) };
        let tokens = |image: usize, head: usize, index: usize| {
            let start = (image * heads + head) * n + index * leaf;
            &order[start..start + leaf]
        };
        let row = |image: usize, head: usize, which: usize, token: u32| {
            (((image * n + token as usize) * 3 + which) * heads + head) as u32
        };
        let mut queries = Vec::with_capacity(b * heads * n);
        let mut keys = Vec::with_capacity(b * heads * leaves * (leaf + borrowed));
        let mut places = vec![0; b * n * heads];
        for image in 0..b {
            for head in 0..heads {
                for index in 0..leaves {
                    let own = tokens(image, head, index);
                    queries.extend(own.iter().map(|&token| row(image, head, 0, token)));
                    keys.extend(own.iter().map(|&token| row(image, head, 1, token)));
                    if let Some((other, sibling)) = pairing.partner(image, index) {
                        let theirs = tokens(other, head, sibling);
                        let comes_next = (other, sibling) > (image, index);
                        let part = if comes_next { &theirs[..borrowed] } else { &theirs[leaf - borrowed..] };
                        keys.extend(part.iter().map(|&token| row(other, head, 1, token)));
                    }
                    for (i, &token) in own.iter().enumerate() {
                        let place = (image * heads + head) * n + index * leaf + i;
                        places[(image * n + token as usize) * heads + head] = place as u32;
                    }
                }
            }
        }
        let values: Vec<u32> = keys.iter().map(|row| row + heads as u32).collect();
        let list = |rows: Vec<u32>| {
            let count = rows.len();
            Tensor::from_vec(rows, count, device)
        };
        Ok(Self {
            queries: list(queries)?,
            keys: list(keys)?,
            values: list(values)?,
            places: list(places)?,
            leaf,
            borrowed,
        })
    }
}
