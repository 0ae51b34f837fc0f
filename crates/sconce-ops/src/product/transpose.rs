//! Transposition: `out[i * width + j] = from[j * step + i]` for `i < m`, `j < n`.

const SIDE: usize = 8;

/// Numbers of any kind.
pub(super) fn any<T: Copy>((m, n): (usize, usize), from: &[T], step: usize, out: &mut [T], width: usize) {
    // By bands, so that the lines written to stay in the nearest cache.
    for start in (0..m).step_by(SIDE) {
        let end = m.min(start + SIDE);
        for j in 0..n {
            for (i, &x) in (start..end).zip(&from[j * step + start..j * step + end]) {
                out[i * width + j] = x;
            }
        }
    }
}

/// `f32`, in squares that are transposed in registers.
#[cfg(target_arch = "x86_64")]
pub(super) fn single((m, n): (usize, usize), from: &[f32], step: usize, out: &mut [f32], width: usize) {
    use std::sync::LazyLock;

    use pulp::x86::V3;

    static SIMD: LazyLock<Option<V3>> = LazyLock::new(V3::try_new);

    /// Pairs of numbers, then pairs of pairs, then halves of registers change places.
    #[inline(always)]
    fn turn(simd: V3, square: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
        let x = simd.avx;
        let r = square.map(pulp::cast);
        let mut pairs = r;
        for i in 0..4 {
            pairs[2 * i] = x._mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = x._mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut fours = r;
        for i in 0..2 {
            let p = &pairs[4 * i..];
            fours[4 * i] = x._mm256_shuffle_ps::<0b01_00_01_00>(p[0], p[2]);
            fours[4 * i + 1] = x._mm256_shuffle_ps::<0b11_10_11_10>(p[0], p[2]);
            fours[4 * i + 2] = x._mm256_shuffle_ps::<0b01_00_01_00>(p[1], p[3]);
            fours[4 * i + 3] = x._mm256_shuffle_ps::<0b11_10_11_10>(p[1], p[3]);
        }
        let mut turned = r;
        for i in 0..4 {
            turned[i] = x._mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
            turned[4 + i] = x._mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
        }
        turned.map(pulp::cast)
    }

    let Some(simd) = *SIMD else { return any((m, n), from, step, out, width) };
    let (rows, cols) = (m - m % SIDE, n - n % SIDE);
    simd.vectorize(
        #[inline(always)]
        || {
            for j in (0..cols).step_by(SIDE) {
                for i in (0..rows).step_by(SIDE) {
                    let mut square = [[0f32; SIDE]; SIDE];
                    for (c, line) in square.iter_mut().enumerate() {
                        line.copy_from_slice(&from[(j + c) * step + i..][..SIDE]);
                    }
                    for (r, line) in turn(simd, square).iter().enumerate() {
                        out[(i + r) * width + j..][..SIDE].copy_from_slice(line);
                    }
                }
            }
        },
    );
    if rows < m {
        any((m - rows, cols), &from[rows..], step, &mut out[rows * width..], width);
    }
    if cols < n {
        any((m, n - cols), &from[cols * step..], step, &mut out[cols..], width);
    }
}

/// `f32`.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn single(size: (usize, usize), from: &[f32], step: usize, out: &mut [f32], width: usize) {
    any(size, from, step, out, width);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_turns() {
        for (m, n) in [(1, 1), (8, 8), (7, 9), (16, 24), (17, 30), (3, 8), (8, 3), (0, 5), (5, 0)] {
            let (step, width) = (m + 2, n + 3);
            let from: Vec<f32> = (0..n * step + m).map(|x| x as f32).collect();
            for transpose in [single, any] {
                let mut out = vec![-1.; m * width];
                transpose((m, n), &from, step, &mut out, width);
                for i in 0..m {
                    for j in 0..width {
                        let want = if j < n { from[j * step + i] } else { -1. };
                        assert_eq!(out[i * width + j], want, "{m}x{n} at ({i}, {j})");
                    }
                }
            }
        }
    }
}
