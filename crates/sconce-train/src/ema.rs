//! Exponential moving averages of parameters: evaluation weights, and teachers.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::optim::Param;
use crate::optim::kernel::{self, CHUNK, Kernel, Real};
use crate::{Error, Result};

/// How fast an [`Ema`] forgets; the rule and its defaults are timm's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmaConfig {
    /// Decay of the average in the long run.
    pub decay: f64,
    /// Least decay while warming up.
    pub min_decay: f64,
    /// Updates for which the average is a mere copy, besides the first.
    pub update_after: u64,
    /// Lets the decay rise from 0 in the beginning.
    pub warmup: Option<EmaWarmup>,
}

/// Rise of the decay: `1 - (1 + t / gamma)^-power`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmaWarmup {
    /// Time scale, in updates.
    pub gamma: f64,
    /// 2/3 suits a million updates or more, 3/4 fewer.
    pub power: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.9999, min_decay: 0., update_after: 0, warmup: None }
    }
}

impl Default for EmaWarmup {
    fn default() -> Self {
        Self { gamma: 1., power: 2. / 3. }
    }
}

impl EmaConfig {
    /// Decay of an update, counted from 1. The first update copies.
    pub fn decay_at(&self, update: u64) -> f64 {
        let time = update.saturating_sub(self.update_after).saturating_sub(1);
        match self.warmup {
            _ if time == 0 => 0.,
            None => self.decay,
            Some(EmaWarmup { gamma, power }) => {
                let decay = 1. - (1. + time as f64 / gamma).powf(-power);
                decay.min(self.decay).max(self.min_decay)
            }
        }
    }
}

/// An exponential moving average of parameters: `average += (1 - decay) * (value - average)`.
///
/// Floating point entries are averaged, running statistics included; others are copied. The average
/// may live in variables of its own ([`Ema::new`]) or in those of a second model ([`Ema::between`]).
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    entries: Vec<Entry>,
    updates: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    source: Var,
    average: Var,
}

impl Ema {
    /// An average that starts as a copy of these entries.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn new<P: Into<Param>>(params: impl IntoIterator<Item = P>, config: EmaConfig) -> Result<Self> {
        let entries = params
            .into_iter()
            .map(|param| {
                let Param { name, var: source } = param.into();
                let average = Var::from_tensor(&source.as_detached_tensor().copy()?)?;
                Ok(Entry { name, source, average })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, entries, updates: 0 })
    }

    /// An average that is kept in `averages`, a teacher's entries, and follows the entries of the same
    /// names in `sources`. The averages keep the values they have until the first update.
    ///
    /// # Errors
    /// A name in one of the two only; another shape or type.
    pub fn between<P: Into<Param>, Q: Into<Param>>(
        sources: impl IntoIterator<Item = P>,
        averages: impl IntoIterator<Item = Q>,
        config: EmaConfig,
    ) -> Result<Self> {
        let mut by_name: HashMap<String, Var> = averages
            .into_iter()
            .map(|param| {
                let Param { name, var } = param.into();
                (name, var)
            })
            .collect();
        let section = || "the average".to_owned();
        let mut entries = Vec::new();
        for param in sources {
            let Param { name, var: source } = param.into();
            let Some(average) = by_name.remove(&name) else {
                return Err(Error::MissingTensor { section: section(), name });
            };
            Error::check_tensor("the average", &name, &source, &average)?;
            entries.push(Entry { name, source, average });
        }
        match by_name.into_keys().min() {
            Some(name) => Err(Error::UnexpectedTensor { section: section(), name }),
            None => Ok(Self { config, entries, updates: 0 }),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &EmaConfig {
        &self.config
    }

    /// Number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Names and values of the average; the tensors share its memory.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let shared = |e: &Entry| (e.name.clone(), e.average.as_detached_tensor());
        self.entries.iter().map(shared).collect()
    }

    /// Moves the average by the configured decay.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn update(&mut self) -> Result<()> {
        self.update_with(self.config.decay_at(self.updates + 1))
    }

    /// Moves the average by a decay of the caller's: a scheduled momentum, say.
    ///
    /// # Errors
    /// A decay outside of 0 to 1; a failure of the device.
    pub fn update_with(&mut self, decay: f64) -> Result<()> {
        if !(0. ..=1.).contains(&decay) {
            return Err(Error::Config(format!("a moving average with decay {decay}")));
        }
        self.entries.par_iter().try_for_each(|entry| entry.lerp(1. - decay))?;
        self.updates += 1;
        Ok(())
    }

    /// Exchanges the values of the average with those of the parameters. Exchanging twice restores both.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn swap(&mut self) -> Result<()> {
        for Entry { source, average, .. } in &self.entries {
            let value = source.as_detached_tensor().copy()?;
            source.set(average)?;
            average.set(&value)?;
        }
        Ok(())
    }

    /// Calls `f` while the parameters hold the average, for evaluation; they get their values back
    /// whatever `f` does.
    ///
    /// # Errors
    /// Those of `f`, and a failure of the device.
    pub fn with_average<R, E: From<Error>>(
        &mut self,
        f: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        struct Swapped<'a>(Option<&'a mut Ema>);
        impl Drop for Swapped<'_> {
            fn drop(&mut self) {
                // Only a panic of `f` comes here, and it is on its way to the caller.
                if let Some(ema) = self.0.take()
                    && let Err(error) = ema.swap()
                {
                    tracing::error!("the parameters could not be restored from the average: {error}");
                }
            }
        }
        self.swap()?;
        let mut swapped = Swapped(Some(self));
        let result = f();
        if let Some(ema) = swapped.0.take() {
            ema.swap()?;
        }
        result
    }

    /// The average and the number of updates, for a checkpoint.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = vec![("updates".to_owned(), Tensor::new(self.updates as i64, &Device::Cpu)?)];
        state.extend(self.tensors().into_iter().map(|(name, t)| (format!("average.{name}"), t)));
        Ok(state)
    }

    /// Restores a state, exactly.
    ///
    /// # Errors
    /// A tensor that is missing, left over, or of another shape or type. The average is then as it was.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        const SECTION: &str = "state of the moving average";
        let mut source: HashMap<&str, &Tensor> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut take = |name: &str| {
            let missing = || Error::MissingTensor { section: SECTION.to_owned(), name: name.to_owned() };
            source.remove(name).ok_or_else(missing)
        };
        let count = take("updates")?;
        Error::check_tensor(SECTION, "updates", &Tensor::new(0i64, &Device::Cpu)?, count)?;
        let updates = u64::try_from(count.to_scalar::<i64>()?)
            .map_err(|_| Error::Config("a negative number of updates in the saved state".to_owned()))?;
        let mut values = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let name = format!("average.{}", entry.name);
            let value = take(&name)?;
            Error::check_tensor(SECTION, &name, &entry.average, value)?;
            values.push(value);
        }
        if let Some(name) = source.into_keys().min() {
            return Err(Error::UnexpectedTensor { section: SECTION.to_owned(), name: name.to_owned() });
        }
        for (entry, value) in self.entries.iter().zip(values) {
            entry.average.set(&value.to_device(entry.average.device())?)?;
        }
        self.updates = updates;
        Ok(())
    }
}

impl Entry {
    fn lerp(&self, weight: f64) -> candle_core::Result<()> {
        let Self { source, average, .. } = self;
        match (average.device(), average.dtype()) {
            (_, dtype) if !dtype.is_float() => average.set(source),
            (Device::Cpu, DType::F32) => kernel::update::<f32>(average, source, |a, x| lerp(a, x, weight)),
            (Device::Cpu, DType::F64) => kernel::update::<f64>(average, source, |a, x| lerp(a, x, weight)),
            (_, dtype) => {
                let old = average.as_detached_tensor();
                let new = (&old + ((source.as_detached_tensor() - &old)? * weight)?)?;
                average.set(&new.to_dtype(dtype)?)
            }
        }
    }
}

fn lerp<T: Real>(average: &mut [T], value: &[T], weight: f64) {
    average
        .par_chunks_mut(CHUNK)
        .zip(value.par_chunks(CHUNK))
        .for_each(|(average, value)| kernel::dispatch(Lerp { average, value, weight: T::of(weight) }));
}

struct Lerp<'a, T> {
    average: &'a mut [T],
    value: &'a [T],
    weight: T,
}

impl<T: Real> Kernel for Lerp<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (a, &x) in self.average.iter_mut().zip(self.value) {
            *a += (x - *a) * self.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(name: &str, values: &[f32]) -> Param {
        let var = Var::new(values, &Device::Cpu).unwrap();
        Param { name: name.to_owned(), var }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_vec1().unwrap()
    }

    #[test]
    fn decay_follows_timm() {
        let plain = EmaConfig { decay: 0.99, update_after: 2, ..EmaConfig::default() };
        assert_eq!([1, 2, 3, 4, 5].map(|u| plain.decay_at(u)), [0., 0., 0., 0.99, 0.99]);
        let warm = EmaConfig { decay: 0.9, warmup: Some(EmaWarmup::default()), ..EmaConfig::default() };
        assert_eq!(warm.decay_at(1), 0.);
        assert!((warm.decay_at(8) - 0.75).abs() < 1e-12); // 1 - 8^(-2/3)
        assert_eq!(warm.decay_at(1000), 0.9);
    }

    #[test]
    fn the_average_follows_its_formula() -> Result<()> {
        let param = param("w", &[1., -2.]);
        let mut ema = Ema::new([param.clone()], EmaConfig { decay: 0.75, ..EmaConfig::default() })?;
        let mut expected = [1f32, -2.];
        for step in 1..5 {
            let new = [step as f32 * 0.5, 3. - step as f32];
            param.var.set(&Tensor::new(&new, &Device::Cpu)?)?;
            ema.update()?;
            for (e, x) in expected.iter_mut().zip(new) {
                *e = if step == 1 { x } else { *e + (x - *e) * 0.25 };
            }
            assert_eq!(values(&ema.tensors()[0].1), expected);
        }
        assert_eq!(ema.updates(), 4);
        assert!(matches!(ema.update_with(1.5), Err(Error::Config(_))));
        Ok(())
    }

    #[test]
    fn swapping_shows_the_average_and_restores() -> Result<()> {
        let param = param("w", &[1.]);
        let mut ema = Ema::new([param.clone()], EmaConfig::default())?;
        param.var.set(&Tensor::new(&[5f32], &Device::Cpu)?)?;
        let seen = ema.with_average(|| Ok::<_, Error>(values(&param.var)))?;
        assert_eq!((seen, values(&param.var)), (vec![1.], vec![5.]));
        let failed: Result<()> = ema.with_average(|| Err(Error::Config("no".to_owned())));
        assert!(failed.is_err() && values(&param.var) == [5.]);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ema.with_average(|| -> Result<()> { panic!("in evaluation") })
        }));
        assert!(panicked.is_err() && values(&param.var) == [5.]);
        Ok(())
    }

    #[test]
    fn a_teacher_follows_by_name() -> Result<()> {
        let student = [param("a", &[1.]), param("b", &[2.])];
        let teacher = [param("b", &[0.]), param("a", &[0.])];
        let mut ema = Ema::between(student.clone(), teacher.clone(), EmaConfig::default())?;
        ema.update_with(0.5)?;
        assert_eq!((values(&teacher[0].var), values(&teacher[1].var)), (vec![1.], vec![0.5]));
        let other = [param("a", &[1., 2.]), param("b", &[2.])];
        let between = |s: &[Param], t: &[Param]| Ema::between(s.to_vec(), t.to_vec(), EmaConfig::default());
        assert!(matches!(between(&student, &other), Err(Error::TensorMismatch { .. })));
        assert!(matches!(between(&student, &teacher[..1]), Err(Error::MissingTensor { .. })));
        assert!(matches!(between(&student[..1], &teacher), Err(Error::UnexpectedTensor { .. })));
        Ok(())
    }

    #[test]
    fn state_round_trip_is_exact() -> Result<()> {
        let param = param("w", &[0.1, 0.7]);
        let mut ema = Ema::new([param.clone()], EmaConfig::default())?;
        ema.update()?;
        ema.update_with(0.3)?;
        let mut fresh = Ema::new([param], EmaConfig::default())?;
        fresh.load_state(&ema.state()?)?;
        assert_eq!((values(&fresh.tensors()[0].1), fresh.updates()), (values(&ema.tensors()[0].1), 2));
        let mut state = ema.state()?;
        assert!(matches!(fresh.load_state(&state[1..]), Err(Error::MissingTensor { .. })));
        state.push(("average.x".to_owned(), Tensor::new(1f32, &Device::Cpu)?));
        assert!(matches!(fresh.load_state(&state), Err(Error::UnexpectedTensor { .. })));
        Ok(())
    }
}
