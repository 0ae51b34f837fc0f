//! A bounded cache of words already split.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

/// Keeps the words used of late: when the young half is full it becomes the old half, and the old half is forgotten.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<Box<str>, Arc<[u32]>>,
    old: HashMap<Box<str>, Arc<[u32]>>,
}

/// Words in each half.
const HALF: usize = 1 << 15;

/// Longer words are not worth their memory.
const MAX_BYTES: usize = 64;

impl WordCache {
    /// The tokens of `word`, from the cache or from `split`.
    pub(super) fn get(&self, word: &str, split: impl FnOnce() -> Vec<u32>) -> Arc<[u32]> {
        if word.len() > MAX_BYTES {
            return split().into();
        }
        // A poisoned cache is still a cache: its entries are inserted whole.
        let lock = || self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let halves = lock();
            if let Some(tokens) = halves.young.get(word) {
                return tokens.clone();
            }
            halves.old.get(word).cloned()
        };
        let tokens = known.unwrap_or_else(|| split().into());
        let mut halves = lock();
        if halves.young.len() >= HALF {
            halves.old = mem::take(&mut halves.young);
        }
        halves.young.insert(word.into(), tokens.clone());
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_right() {
        let cache = WordCache::default();
        for i in 0..(3 * HALF) as u32 {
            assert_eq!(cache.get(&i.to_string(), || vec![i])[..], [i]);
            assert_eq!(cache.get("often", || vec![7])[..], [7]);
        }
        let halves = cache.halves.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(halves.young.len() <= HALF && halves.old.len() <= HALF);
    }
}
