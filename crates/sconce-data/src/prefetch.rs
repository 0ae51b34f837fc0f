//! Work done ahead on several threads, delivered in order.

use crate::{Error, Generator, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Applies `function` to the items of `source` on `workers` threads and yields the results in the order of the
/// source, at most `ahead` of them done or in the making before they are asked for.
///
/// Without workers the function runs in the caller's thread. The source is advanced by one worker at a time, in
/// order. Dropping the iterator stops and joins the workers; each finishes the item it is at.
///
/// A panic in the source or the function becomes [`Error::Worker`], after which the iterator ends.
///
/// # Errors
/// [`Error::Invalid`] when the operating system gives no thread.
pub fn ordered_map<S, F, R>(source: S, workers: usize, ahead: usize, function: F) -> Result<OrderedMap<S, F, R>>
where
    S: Iterator + Send + 'static,
    S::Item: Send + 'static,
    F: Fn(S::Item) -> R + Send + Sync + 'static,
    R: Send + 'static,
{
    let shared = Arc::new(Shared {
        source: Mutex::new(Source { items: source, taken: 0, ended: false }),
        state: Mutex::new(State { done: BTreeMap::new(), delivered: 0, length: None, stopped: false }),
        changed: Condvar::new(),
        ahead: ahead.max(1),
        function,
    });
    let mut map = OrderedMap { shared, workers: Vec::with_capacity(workers) };
    for number in 0..workers {
        let shared = Arc::clone(&map.shared);
        let worker = std::thread::Builder::new().name(format!("sconce-data-{number}"));
        let handle = worker.spawn(move || shared.work());
        map.workers.push(handle.map_err(|e| Error::invalid("workers", format!("no thread: {e}")))?);
    }
    Ok(map)
}

/// Iterator of [`ordered_map`].
pub struct OrderedMap<S: Iterator, F, R> {
    shared: Arc<Shared<S, F, R>>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared<S: Iterator, F, R> {
    source: Mutex<Source<S>>,
    state: Mutex<State<R>>,
    changed: Condvar,
    ahead: usize,
    function: F,
}

struct Source<S> {
    items: S,
    taken: usize,
    ended: bool,
}

struct State<R> {
    done: BTreeMap<usize, Result<R>>,
    delivered: usize,
    /// Number of results, known once the source has ended.
    length: Option<usize>,
    stopped: bool,
}

/// Panics of foreign code are caught before a guard is dropped, so a poisoned lock guards a sound value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let message = payload.downcast_ref::<&str>().map(|m| (*m).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Error::Worker { message: message.unwrap_or_else(|| "without a message".into()) }
    })
}

impl<S: Iterator, F: Fn(S::Item) -> R, R> Shared<S, F, R> {
    fn work(&self) {
        while let Some((number, item)) = self.take() {
            let result = caught(|| (self.function)(item));
            lock(&self.state).done.insert(number, result);
            self.changed.notify_all();
        }
    }

    /// The next item of the source and its number, once the window has reached it.
    fn take(&self) -> Option<(usize, S::Item)> {
        // Held while waiting: whoever waits here is the next in order, so the others may as well queue.
        let mut source = lock(&self.source);
        if source.ended {
            return None;
        }
        let number = source.taken;
        let mut state = lock(&self.state);
        while !state.stopped && number >= state.delivered + self.ahead {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return None;
        }
        drop(state);
        match caught(|| source.items.next()) {
            Ok(Some(item)) => {
                source.taken += 1;
                Some((number, item))
            }
            end => {
                source.ended = true;
                let mut state = lock(&self.state);
                if let Err(error) = end {
                    state.done.insert(number, Err(error));
                }
                state.length = Some(number + state.done.contains_key(&number) as usize);
                drop(state);
                self.changed.notify_all();
                None
            }
        }
    }
}

impl<S: Iterator, F: Fn(S::Item) -> R, R> Iterator for OrderedMap<S, F, R> {
    type Item = Result<R>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.workers.is_empty()
            && !lock(&self.shared.state).stopped
            && let Some((number, item)) = self.shared.take()
        {
            let result = caught(|| (self.shared.function)(item));
            lock(&self.shared.state).done.insert(number, result);
        }
        let mut state = lock(&self.shared.state);
        loop {
            let number = state.delivered;
            if state.stopped || state.length.is_some_and(|length| number >= length) {
                return None;
            }
            if let Some(result) = state.done.remove(&number) {
                state.delivered += 1;
                state.stopped = result.is_err();
                drop(state);
                self.shared.changed.notify_all();
                return Some(result);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<S: Iterator, F, R> Drop for OrderedMap<S, F, R> {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // Workers catch panics, so there is nothing to learn from the result.
            let _ = worker.join();
        }
    }
}

impl<S: Iterator, F, R> fmt::Debug for OrderedMap<S, F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delivered = lock(&self.shared.state).delivered;
        f.debug_struct("OrderedMap")
            .field("workers", &self.workers.len())
            .field("ahead", &self.shared.ahead)
            .field("delivered", &delivered)
            .finish_non_exhaustive()
    }
}

/// Gathers the items of an iterator into vectors of `size`; the last may be shorter.
pub fn batched<I: Iterator>(mut items: I, size: usize) -> impl Iterator<Item = Vec<I::Item>> {
    std::iter::from_fn(move || {
        let batch: Vec<_> = items.by_ref().take(size.max(1)).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

/// Shuffles a stream within a buffer: each item is drawn from the next `capacity` ones not yet given.
pub fn shuffle_buffer<I: Iterator>(
    mut items: I,
    capacity: usize,
    generator: Generator,
) -> impl Iterator<Item = I::Item> {
    let mut buffer = Vec::new();
    std::iter::from_fn(move || {
        let missing = capacity.max(1).saturating_sub(buffer.len());
        buffer.extend(items.by_ref().take(missing));
        if buffer.is_empty() { None } else { Some(buffer.swap_remove(generator.index(buffer.len()))) }
    })
}
