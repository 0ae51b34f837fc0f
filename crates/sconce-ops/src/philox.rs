//! Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": a block cipher whose counter is the
//! place in a stream of random numbers.

/// Two times 64 bits for a 128-bit counter and a 64-bit key.
#[inline]
pub fn philox(counter: [u64; 2], key: u64) -> [u64; 2] {
    let [low, high] = counter.map(|c| [[c as u32], [(c >> 32) as u32]]);
    let [[c0], [c1], [c2], [c3]] = rounds([low[0], low[1], high[0], high[1]], key);
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    [join(c0, c1), join(c2, c3)]
}

/// Blocks in a tile.
pub(crate) const WIDTH: usize = 16;

/// Numbers of 32 bits in a tile.
pub(crate) const TILE: usize = 4 * WIDTH;

/// The blocks at `WIDTH` consecutive counters, first the first words of all, then the second and so on.
#[inline(always)]
pub(crate) fn tile(first: u64, stream: u64, key: u64) -> [[u32; WIDTH]; 4] {
    let counters: [u64; WIDTH] = std::array::from_fn(|i| first.wrapping_add(i as u64));
    let low = counters.map(|c| c as u32);
    let high = counters.map(|c| (c >> 32) as u32);
    rounds([low, high, [stream as u32; WIDTH], [(stream >> 32) as u32; WIDTH]], key)
}

/// Ten rounds on `N` blocks side by side.
#[inline(always)]
fn rounds<const N: usize>([mut c0, mut c1, mut c2, mut c3]: [[u32; N]; 4], key: u64) -> [[u32; N]; 4] {
    let [mut k0, mut k1] = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        for i in 0..N {
            let p0 = u64::from(c0[i]) * 0xd251_1f53;
            let p1 = u64::from(c2[i]) * 0xcd9e_8d57;
            c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
            c1[i] = p1 as u32;
            c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
            c3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_published_ones() {
        // Known answers of the authors' Random123 for philox4x32 with 10 rounds.
        assert_eq!(philox([0, 0], 0), [0xe169_c58d_6627_e8d5, 0x9b00_dbd8_bc57_ac4c]);
        assert_eq!(philox([u64::MAX; 2], u64::MAX), [0x41c8_3b0e_408f_276d, 0x6d54_51fd_a20b_c7c6]);
    }

    #[test]
    fn a_tile_holds_the_blocks() {
        let (first, stream, key) = (u64::MAX - 3, 5 << 32 | 9, 77 << 33 | 1);
        let words = tile(first, stream, key);
        for i in 0..WIDTH {
            let [a, b] = philox([first.wrapping_add(i as u64), stream], key);
            let block = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
            assert_eq!(block, words.map(|word| word[i]));
        }
    }
}
