//! A result that several tasks write at once, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A slice whose parts are handed to tasks by index, for parts that are not one contiguous chunk per task.
#[derive(Debug)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "tasks write disjoint parts of one result")]
// SAFETY: the pointer is only used through `slice`, whose callers take disjoint ranges.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// No other live part may overlap it.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write disjoint parts of one result")]
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the check, and alone by the caller's promise; the borrow of the whole lives as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
