//! Training on pictures with labels and pictures without, side by side.

use candle_core::{D, DType, Tensor};
use sconce_nn::ParamStore;
use sconce_ops::Generator;
use sconce_train::StepOutput;

use super::Dapl;
use crate::{Error, FitConfig, FitOptions, FitReport, Result, fit_batches};

/// Frozen features to adapt with.
#[derive(Clone, Debug)]
pub struct DaplData {
    /// Pictures with labels, `(N, E)`.
    pub labelled: Tensor,
    /// Their classes, `(N)` u32.
    pub labels: Tensor,
    /// Their domains, `(N)` u32.
    pub domains: Tensor,
    /// Pictures without, `(M, E)`.
    pub unlabelled: Tensor,
    /// Their domains, `(M)` u32.
    pub unlabelled_domains: Tensor,
}

impl DaplData {
    /// One source domain and one target domain, by their numbers in [`Dapl::new`].
    ///
    /// # Shapes
    /// - `labelled` `(N, E)` with `labels` `(N)` u32; `unlabelled` `(M, E)`
    ///
    /// # Errors
    /// For other shapes and types.
    pub fn new(source: u32, labelled: &Tensor, labels: &Tensor, target: u32, unlabelled: &Tensor) -> Result<Self> {
        let same = |domain: u32, features: &Tensor| -> Result<Tensor> {
            Ok(Tensor::full(domain, features.dims2()?.0, features.device())?)
        };
        let data = Self {
            labelled: labelled.detach().contiguous()?,
            labels: labels.clone(),
            domains: same(source, labelled)?,
            unlabelled: unlabelled.detach().contiguous()?,
            unlabelled_domains: same(target, unlabelled)?,
        };
        data.check()?;
        Ok(data)
    }

    fn check(&self) -> Result<(usize, usize)> {
        let ((n, width), (m, other)) = (self.labelled.dims2()?, self.unlabelled.dims2()?);
        if n == 0 || m == 0 || width != other {
            let expected = format!("(M, {width}), beside at least one labelled picture");
            return Err(Error::Shape { what: "unlabelled features", expected, found: vec![m, other] });
        }
        let of = [("labels", &self.labels, n), ("domains", &self.domains, n), ("domains", &self.unlabelled_domains, m)];
        for (what, numbers, count) in of {
            if numbers.dims() != [count] || numbers.dtype() != DType::U32 {
                let expected = format!("({count}) of u32, not of {}", numbers.dtype().as_str());
                return Err(Error::Shape { what, expected, found: numbers.dims().to_vec() });
            }
        }
        Ok((n, m))
    }
}

impl Dapl {
    /// Trains the context and the domains' vectors, the parameters of `store`.
    ///
    /// Each step takes [`FitConfig::batch_size`] pictures with labels and as many without; an epoch is a pass over those with
    /// labels (`COUNT_ITER: train_x` of the released code), those without come round and round in orders of their own.
    /// [`FitConfig::dapl`] has the released settings, whose rate is a wave over the steps; a rate that falls once is
    /// `FitConfig { schedule: FitSchedule::Cosine { warmup: 1 }, ..FitConfig::dapl() }`. `log.csv` has the accuracy on the
    /// pictures with labels. The parameters of the last epoch stay (the released code keeps the epoch that does best on the
    /// labels of the test pictures).
    ///
    /// # Errors
    /// As [`fit_batches`] and [`Self::loss`]; for class weights, which the method does not have.
    pub fn fit(&self, store: &ParamStore, data: &DaplData, cfg: &FitConfig, options: &FitOptions) -> Result<FitReport> {
        let (n, m) = data.check()?;
        if cfg.class_weights.is_some() {
            return Err(Error::Config("DAPL: the loss has no class weights".into()));
        }
        let mut passes = Passes::new(m, cfg);
        fit_batches(store, n, cfg, options, |position, places| {
            let (with, without) = (self.pick(data, places)?, passes.batch(position.step));
            let without = Tensor::new(without, data.unlabelled.device())?;
            let (features, domains) =
                (data.unlabelled.index_select(&without, 0)?, data.unlabelled_domains.index_select(&without, 0)?);
            self.step(with, (&features, &domains))
        })
    }

    fn pick(&self, data: &DaplData, places: &[u32]) -> Result<[Tensor; 3]> {
        let places = Tensor::new(places, data.labelled.device())?;
        let pick = |xs: &Tensor| xs.index_select(&places, 0);
        Ok([pick(&data.labelled)?, pick(&data.labels)?, pick(&data.domains)?])
    }

    fn step(&self, [features, labels, domains]: [Tensor; 3], unlabelled: (&Tensor, &Tensor)) -> Result<StepOutput> {
        let (with, without) = (features.dim(0)?, unlabelled.0.dim(0)?);
        let logits = self.logits(&Tensor::cat(&[&features, unlabelled.0], 0)?)?; // (B + B', D + 1, K)
        let (labelled, rest) = (logits.narrow(0, 0, with)?, logits.narrow(0, with, without)?);
        let loss = self.loss_of_logits((&labelled, &labels, &domains), (&rest, unlabelled.1))?;
        let own = self.own_domain(&labelled.detach(), &domains)?; // (B, K)
        let right = own.argmax(D::Minus1)?.eq(&labels)?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
        let confident = loss.pseudo.confident.len() as f64 / without as f64;
        Ok(StepOutput::new(loss.total).with("accuracy", right).with("confident", confident))
    }
}

/// An endless row of batches: pass after pass, each in an order that the seed decides.
struct Passes {
    generator: Generator,
    batch: usize,
    /// Batches in a pass.
    steps: u64,
    pass: Option<u64>,
    order: Vec<u32>,
}

impl Passes {
    fn new(count: usize, cfg: &FitConfig) -> Self {
        Self {
            generator: Generator::new(cfg.seed).fork("unlabelled"),
            batch: cfg.batch_size.max(1),
            steps: cfg.steps_per_epoch(count).max(1) as u64,
            pass: None,
            order: (0..count as u32).collect(),
        }
    }

    /// The batch of a step depends on its number alone, so that a training can be resumed.
    fn batch(&mut self, step: u64) -> &[u32] {
        let (pass, place) = (step / self.steps, (step % self.steps) as usize);
        if self.pass != Some(pass) {
            self.order.sort_unstable();
            self.generator.fork(&pass.to_string()).shuffle(&mut self.order);
            self.pass = Some(pass);
        }
        let start = (place * self.batch).min(self.order.len());
        &self.order[start..self.order.len().min(start + self.batch)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_comes_once_in_a_pass() {
        let cfg = FitConfig { batch_size: 4, drop_last: false, ..FitConfig::default() };
        let mut passes = Passes::new(10, &cfg);
        let mut pass =
            |number: u64| -> Vec<u32> { (0..3).flat_map(|i| passes.batch(3 * number + i).to_vec()).collect() };
        let (first, second) = (pass(0), pass(1));
        assert_ne!(first, second);
        // The same numbers again, out of their order.
        assert_eq!(pass(0), first);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn fewer_pictures_than_a_batch_are_one() {
        let cfg = FitConfig { batch_size: 32, drop_last: true, ..FitConfig::default() };
        let mut passes = Passes::new(5, &cfg);
        assert!((0..4).all(|step| passes.batch(step).len() == 5));
    }
}
