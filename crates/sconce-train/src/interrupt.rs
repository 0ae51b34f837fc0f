//! Stopping between two steps when the user presses Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;

/// A request to stop, to be looked at between steps. Clones share it.
///
/// ```
/// use sconce_train::Interrupt;
/// let interrupt = Interrupt::new();
/// interrupt.request();
/// assert!(interrupt.is_requested());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

static ON_CTRL_C: Mutex<Option<Interrupt>> = Mutex::new(None);

/// Exit status of a process that a shell takes to have died of Ctrl-C.
const EXIT_STATUS: i32 = 130;

impl Interrupt {
    /// A request that only [`Interrupt::request`] makes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The request that Ctrl-C makes. The handler is installed with the first call and stays for the
    /// life of the process; every call gives the same request. A second Ctrl-C, while the first has
    /// not been dealt with, ends the process at once with status 130.
    ///
    /// # Errors
    /// Another handler is installed already, or the system refuses.
    pub fn on_ctrl_c() -> Result<Self> {
        let mut installed = ON_CTRL_C.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = &*installed {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::new();
        let requested = interrupt.clone();
        ctrlc::try_set_handler(move || {
            if requested.0.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_STATUS);
            }
        })?;
        *installed = Some(interrupt.clone());
        Ok(interrupt)
    }

    /// Whether to stop.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Asks to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Withdraws the request, after having dealt with it.
    pub fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
