//! Codes in the order that vectors want.

/// The same word of eight codes: one vector of 512 bits, in a cache line of its own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [u64; Lanes::WIDTH]);

/// Codes by eights: the first words of eight codes, their second words and so on, then the next eight codes. Zeros fill the
/// last eight up.
#[derive(Debug, Clone)]
pub struct Lanes {
    words: usize,
    len: usize,
    memory: Vec<Block>,
}

impl Lanes {
    /// Codes side by side.
    pub const WIDTH: usize = 8;

    /// No codes yet, of `words` words each.
    ///
    /// # Panics
    /// When `words` is 0.
    pub fn new(words: usize) -> Self {
        assert_ne!(words, 0, "words of a code");
        Self { words, len: 0, memory: vec![] }
    }

    /// Takes other codes in place of those before: rows of words.
    ///
    /// # Panics
    /// When these are no whole codes, or more than `u32::MAX / 2` of them.
    pub fn load(&mut self, codes: &[u64]) {
        let len = self.whole(codes.len());
        self.fill(len, |i| codes[i]);
    }

    /// Takes other codes in place of those before: rows of words, written lowest byte first.
    ///
    /// # Panics
    /// When these are no whole codes, or more than `u32::MAX / 2` of them.
    pub fn load_le_bytes(&mut self, codes: &[u8]) {
        let (words, rest) = codes.as_chunks::<8>();
        assert!(rest.is_empty(), "whole words");
        let len = self.whole(words.len());
        self.fill(len, |i| u64::from_le_bytes(words[i]));
    }

    /// How many codes so many words are.
    fn whole(&self, words: usize) -> usize {
        assert!(words.is_multiple_of(self.words), "whole codes");
        let len = words / self.words;
        assert!(len <= u32::MAX as usize / 2, "places that fit into 32 bits");
        len
    }

    #[inline(always)]
    fn fill(&mut self, len: usize, word: impl Fn(usize) -> u64) {
        let words = self.words;
        self.len = len;
        self.memory.resize(len.div_ceil(Self::WIDTH) * words, Block([0; Self::WIDTH]));
        for (b, block) in self.memory.chunks_exact_mut(words).enumerate() {
            let first = b * Self::WIDTH;
            let inside = Self::WIDTH.min(len - first);
            for (w, lanes) in block.iter_mut().enumerate() {
                if inside < Self::WIDTH {
                    lanes.0 = [0; Self::WIDTH];
                }
                for (l, lane) in lanes.0[..inside].iter_mut().enumerate() {
                    *lane = word((first + l) * words + w);
                }
            }
        }
    }

    /// Words of a code.
    pub fn words(&self) -> usize {
        self.words
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of blocks of eight, the last one perhaps filled up.
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(Self::WIDTH)
    }

    pub(super) fn memory(&self) -> &[Block] {
        &self.memory
    }
}
