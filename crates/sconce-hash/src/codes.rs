//! Binary codes, 64 bits to a word.

use std::{fmt, ops::Range};

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// Codes of one width.
///
/// `Convention:` bit `k` of a code is bit `k % 64` of its word `k / 64`; 1 stands for the sign +1, 0 for -1. Bits of the
/// last word above the width are zero, always: whatever makes codes checks it, so that the Hamming distance of two codes is
/// the number of ones in the exclusive or of their words. With signs q and x it equals (K - q.x) / 2.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Codes {
    bits: usize,
    words: Vec<u64>,
}

impl Codes {
    /// The widest code.
    pub const MAX_BITS: usize = 1024;

    /// No code yet, of a width in bits.
    ///
    /// # Errors
    /// When the width is not in `1..=1024`.
    pub fn new(bits: usize) -> Result<Self> {
        Self::from_words(bits, vec![])
    }

    /// Codes by the signs of real numbers: 1 where a number is >= 0, both zeros included.
    ///
    /// # Shapes
    /// - `signs`: `(N, K)`, floating-point, on any device
    ///
    /// # Errors
    /// When a number is NaN, the type is not floating-point, the shape is another, or K is not in `1..=1024`.
    pub fn from_signs(signs: &Tensor) -> Result<Self> {
        // Rows that are converted at once: one type holds all of them exactly, but takes memory.
        const ROWS: usize = 1024;
        if !signs.dtype().is_float() {
            return Err(Error::Input(format!("signs are floating-point numbers, these are {:?}", signs.dtype())));
        }
        let (rows, bits) = signs.dims2()?;
        let mut codes = Self::new(bits)?;
        for start in (0..rows).step_by(ROWS) {
            let block = signs.narrow(0, start, ROWS.min(rows - start))?.to_device(&Device::Cpu)?;
            let block = block.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?; // (ROWS * K)
            if let Some(i) = block.iter().position(|x| x.is_nan()) {
                let (row, bit) = (start + i / bits, i % bits);
                return Err(Error::Input(format!("row {row} is NaN at bit {bit}: it has no sign")));
            }
            codes.push_bits(block.iter().map(|x| *x >= 0.));
        }
        Ok(codes)
    }

    /// Codes from `bits` flags each, one code after the other.
    ///
    /// # Errors
    /// When the number of flags is no multiple of `bits`, or the width is not in `1..=1024`.
    pub fn from_bools(bits: usize, flags: &[bool]) -> Result<Self> {
        let mut codes = Self::new(bits)?;
        whole(flags.len(), bits, "flags")?;
        codes.push_bits(flags.iter().copied());
        Ok(codes)
    }

    /// Codes from bytes, lowest bit first as `numpy.packbits(bitorder="little")` writes them: `ceil(bits / 8)` bytes to a
    /// code.
    ///
    /// # Errors
    /// When the number of bytes is no multiple of that, a bit above the width is set, or the width is not in `1..=1024`.
    pub fn from_bytes(bits: usize, bytes: &[u8]) -> Result<Self> {
        let stride = words_for(bits)?;
        let width = bits.div_ceil(8);
        let count = whole(bytes.len(), width, "bytes")?;
        let mut words = Vec::with_capacity(count * stride);
        for code in bytes.chunks_exact(width) {
            words.extend(code.chunks(8).map(|bytes| {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(word)
            }));
        }
        Self::from_words(bits, words)
    }

    /// Codes from packed words, `ceil(bits / 64)` to a code.
    ///
    /// # Errors
    /// When the number of words is no multiple of that, a bit above the width is set, or the width is not in `1..=1024`.
    pub fn from_words(bits: usize, words: Vec<u64>) -> Result<Self> {
        let stride = words_for(bits)?;
        whole(words.len(), stride, "words")?;
        let spare = spare_mask(bits);
        if let Some(row) = words.chunks_exact(stride).position(|code| code[stride - 1] & spare != 0) {
            return Err(Error::Input(format!("code {row} has a one above its {bits} bits")));
        }
        Ok(Self { bits, words })
    }

    /// Appends flags, whole codes.
    fn push_bits(&mut self, flags: impl ExactSizeIterator<Item = bool>) {
        let codes = flags.len() / self.bits;
        let (bits, stride, start) = (self.bits, self.words_per_code(), self.words.len());
        self.words.resize(start + codes * stride, 0);
        let words = &mut self.words[start..];
        let (mut row, mut bit) = (0, 0);
        for flag in flags {
            words[row + bit / 64] |= u64::from(flag) << (bit % 64);
            bit += 1;
            if bit == bits {
                (row, bit) = (row + stride, 0);
            }
        }
    }

    /// Appends all codes of `other`.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn extend(&mut self, other: &Self) -> Result<()> {
        self.same_width(other)?;
        self.words.extend_from_slice(&other.words);
        Ok(())
    }

    /// A copy of consecutive codes.
    ///
    /// # Errors
    /// When the range does not lie within the codes.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        let stride = self.words_per_code();
        if range.start > range.end || range.end > self.len() {
            return Err(Error::Input(format!("codes {range:?} of {}", self.len())));
        }
        Ok(Self { bits: self.bits, words: self.words[range.start * stride..range.end * stride].to_vec() })
    }

    /// A copy of the codes at some places, in their order.
    ///
    /// # Errors
    /// When there is no code at a place.
    pub fn select(&self, places: &[usize]) -> Result<Self> {
        if let Some(place) = places.iter().find(|place| **place >= self.len()) {
            return Err(Error::Input(format!("code {place} of {}", self.len())));
        }
        let words = places.iter().flat_map(|&place| self.row(place)).copied().collect();
        Ok(Self { bits: self.bits, words })
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.words.len() / self.words_per_code()
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Words of a code.
    pub fn words_per_code(&self) -> usize {
        self.bits.div_ceil(64)
    }

    /// All words, one code after the other.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words of code `i`.
    ///
    /// # Panics
    /// When there is no such code, as with a slice.
    pub fn row(&self, i: usize) -> &[u64] {
        let stride = self.words_per_code();
        &self.words[i * stride..(i + 1) * stride]
    }

    /// The codes in order, each as its words.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, u64> {
        self.words.chunks_exact(self.words_per_code())
    }

    /// The codes as bytes, what [`Codes::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let width = self.bits.div_ceil(8);
        let bytes = |code: &[u64]| code.iter().flat_map(|word| word.to_le_bytes()).take(width).collect::<Vec<_>>();
        self.rows().flat_map(bytes).collect()
    }

    /// The codes as +1 and -1.
    ///
    /// # Shapes
    /// - output: `(N, K)`, f32 on the CPU
    ///
    /// # Errors
    /// Those of the making of a tensor.
    pub fn to_signs(&self) -> candle_core::Result<Tensor> {
        let sign = |word: u64, bit: usize| if word >> (bit % 64) & 1 == 1 { 1f32 } else { -1. };
        let signs: Vec<f32> = self.rows().flat_map(|row| (0..self.bits).map(move |k| sign(row[k / 64], k))).collect();
        Tensor::from_vec(signs, (self.len(), self.bits), &Device::Cpu)
    }

    /// Hamming distance between code `i` and code `j` of `other`.
    ///
    /// # Errors
    /// When the widths differ.
    ///
    /// # Panics
    /// When there is no such code, as with a slice.
    pub fn distance(&self, i: usize, other: &Self, j: usize) -> Result<u32> {
        self.same_width(other)?;
        Ok(self.row(i).iter().zip(other.row(j)).map(|(a, b)| (a ^ b).count_ones()).sum())
    }

    /// The share of ones at each bit, about 0.5 everywhere for a good hash; 0 without codes.
    pub fn balance(&self) -> Vec<f64> {
        let n = self.len().max(1) as f64;
        self.ones().into_iter().map(|ones| ones as f64 / n).collect()
    }

    /// Mean Hamming distance over all pairs of two different codes, about `bits / 2` for a good hash; 0 for fewer than two
    /// codes. The cost is linear in N.
    pub fn mean_distance(&self) -> f64 {
        let n = self.len() as f64;
        if n < 2. {
            return 0.;
        }
        // A pair differs at a bit when it is one of the ones with one of the zeros.
        let pairs: f64 = self.ones().into_iter().map(|ones| ones as f64 * (n - ones as f64)).sum();
        pairs / (n * (n - 1.) / 2.)
    }

    fn ones(&self) -> Vec<u64> {
        let mut ones = vec![0; self.bits];
        for row in self.rows() {
            for (k, ones) in ones.iter_mut().enumerate() {
                *ones += row[k / 64] >> (k % 64) & 1;
            }
        }
        ones
    }

    pub(crate) fn same_width(&self, other: &Self) -> Result<()> {
        match self.bits == other.bits {
            true => Ok(()),
            false => Err(Error::Input(format!("codes of {} and of {} bits have no distance", self.bits, other.bits))),
        }
    }
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codes").field("len", &self.len()).field("bits", &self.bits).finish_non_exhaustive()
    }
}

/// Words of a code of so many bits.
pub(crate) fn words_for(bits: usize) -> Result<usize> {
    match (1..=Codes::MAX_BITS).contains(&bits) {
        true => Ok(bits.div_ceil(64)),
        false => Err(Error::Config(format!("a code has 1 to {} bits, not {bits}", Codes::MAX_BITS))),
    }
}

/// The bits of the last word that are above the width.
pub(crate) fn spare_mask(bits: usize) -> u64 {
    match bits % 64 {
        0 => 0,
        used => u64::MAX << used,
    }
}

/// How often `part` fits into `length`, exactly.
fn whole(length: usize, part: usize, what: &str) -> Result<usize> {
    match length % part {
        0 => Ok(length / part),
        _ => Err(Error::Input(format!("{length} {what} are not whole codes of {part}"))),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_of_every_float_type_are_packed_lowest_bit_first() -> Result<()> {
        // In f64 the first is negative; rounded to f32 it would be -0, which counts as positive.
        let xs = [-1e-300, 0., -0., 5., f64::INFINITY, f64::NEG_INFINITY];
        let signs = Tensor::new(&[xs], &Device::Cpu)?;
        assert_eq!(Codes::from_signs(&signs)?.row(0), [0b011110]);
        let xs = [-1e-3, 0., -0., 5., f64::INFINITY, f64::NEG_INFINITY];
        let signs = Tensor::new(&[xs], &Device::Cpu)?;
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            assert_eq!(Codes::from_signs(&signs.to_dtype(dtype)?)?.row(0), [0b011110]);
        }
        assert_eq!(Codes::from_signs(&signs.t()?)?.words(), [0, 1, 1, 1, 1, 0]);
        Ok(())
    }

    #[test]
    fn what_has_no_sign_is_refused() -> Result<()> {
        for position in [0, 129, 3 * 130 - 1] {
            let mut xs = vec![1f32; 3 * 130];
            xs[position] = f32::NAN;
            let signs = Tensor::from_vec(xs, (3, 130), &Device::Cpu)?;
            let error = Codes::from_signs(&signs).unwrap_err().to_string();
            assert!(error.contains(&format!("row {}", position / 130)), "{error}");
            assert!(error.contains(&format!("bit {}", position % 130)), "{error}");
        }
        assert!(Codes::from_signs(&Tensor::new(&[[f16::NAN]], &Device::Cpu)?).is_err());
        assert!(Codes::from_signs(&Tensor::new(&[[bf16::NAN]], &Device::Cpu)?).is_err());
        assert!(Codes::from_signs(&Tensor::new(&[[1u8]], &Device::Cpu)?).is_err());
        assert!(Codes::from_signs(&Tensor::new(&[1f32], &Device::Cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn widths_and_lengths_are_checked() -> Result<()> {
        for bits in [0, 1025, usize::MAX] {
            assert!(matches!(Codes::new(bits), Err(Error::Config(_))));
            assert!(Codes::from_words(bits, vec![]).is_err());
            assert!(Codes::from_bytes(bits, &[]).is_err());
            assert!(Codes::from_bools(bits, &[]).is_err());
        }
        assert!(Codes::from_words(65, vec![0; 3]).is_err());
        assert!(Codes::from_words(65, vec![0, 2]).is_err());
        assert!(Codes::from_words(65, vec![u64::MAX, 1]).is_ok());
        assert!(Codes::from_bytes(9, &[0; 3]).is_err());
        assert!(Codes::from_bytes(9, &[255, 2]).is_err());
        assert!(Codes::from_bools(9, &[true; 10]).is_err());
        let mut codes = Codes::from_words(64, vec![1, 2, 3])?;
        assert!(codes.extend(&Codes::new(63)?).is_err());
        assert!(codes.slice(2..4).is_err());
        assert!(codes.select(&[0, 3]).is_err());
        assert_eq!(codes.select(&[2, 0, 2])?.words(), [3, 1, 3]);
        assert!(codes.distance(0, &Codes::from_words(63, vec![1])?, 0).is_err());
        codes.extend(&codes.slice(1..2)?)?;
        assert_eq!(codes.words(), [1, 2, 3, 2]);
        Ok(())
    }

    #[test]
    fn empty_signs_are_no_codes() -> Result<()> {
        let codes = Codes::from_signs(&Tensor::zeros((0, 70), DType::F32, &Device::Cpu)?)?;
        assert_eq!((codes.len(), codes.bits(), codes.is_empty()), (0, 70, true));
        assert_eq!(codes.to_signs()?.dims(), [0, 70]);
        assert_eq!((codes.balance(), codes.mean_distance()), (vec![0.; 70], 0.));
        assert!(Codes::from_signs(&Tensor::zeros((3, 0), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_form_gives_the_same_codes(bits in 1usize..200, seed: u64, len in 0usize..5) {
            let mut state = seed;
            let mut flag = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state >> 63 == 1
            };
            let flags: Vec<bool> = (0..bits * len).map(|_| flag()).collect();
            let codes = Codes::from_bools(bits, &flags).unwrap();
            prop_assert_eq!(codes.len(), len);
            let signs: Vec<f32> = flags.iter().map(|&f| if f { 1. } else { -1. }).collect();
            let signs = Tensor::from_vec(signs, (len, bits), &Device::Cpu).unwrap();
            prop_assert_eq!(&Codes::from_signs(&signs).unwrap(), &codes);
            prop_assert_eq!(&Codes::from_bytes(bits, &codes.to_bytes()).unwrap(), &codes);
            prop_assert_eq!(&Codes::from_words(bits, codes.words().to_vec()).unwrap(), &codes);
            let back = codes.to_signs().unwrap();
            prop_assert_eq!(back.to_vec2::<f32>().unwrap(), signs.to_vec2::<f32>().unwrap());
            let (mut sum, mut pairs) = (0., 0.);
            for i in 0..len {
                for j in 0..len {
                    let want = (0..bits).filter(|k| flags[i * bits + k] != flags[j * bits + k]).count();
                    prop_assert_eq!(codes.distance(i, &codes, j).unwrap(), want as u32);
                    sum += want as f64;
                    pairs += f64::from(u8::from(i != j));
                }
            }
            if pairs > 0. {
                prop_assert!((codes.mean_distance() - sum / pairs).abs() < 1e-9);
            }
            for (k, balance) in codes.balance().into_iter().enumerate() {
                let ones = (0..len).filter(|i| flags[i * bits + k]).count();
                prop_assert!((balance * len as f64 - ones as f64).abs() < 1e-9);
            }
        }
    }
}
