//! Gamma and beta numbers, one at a time.

use candle_core::Result;

use crate::{Error, Generator};

impl Generator {
    /// A gamma number of this shape and scale 1: Marsaglia and Tsang 2000, "A simple method for generating gamma variables".
    ///
    /// How many numbers are drawn for it varies.
    ///
    /// # Errors
    /// When the shape is not positive and finite.
    pub fn gamma(&self, shape: f64) -> Result<f64> {
        Ok(self.log_gamma("gamma", "shape", shape)?.exp())
    }

    /// A beta number in `[0, 1]` with these parameters.
    ///
    /// # Errors
    /// When a parameter is not positive and finite.
    pub fn beta(&self, a: f64, b: f64) -> Result<f64> {
        // Of two gamma numbers `x / (x + y)`; by their logarithms, since with small parameters both are often below every float.
        let x = self.log_gamma("beta", "a", a)?;
        let y = self.log_gamma("beta", "b", b)?;
        Ok(1. / (1. + (y - x).exp()))
    }

    /// The logarithm of a gamma number.
    fn log_gamma(&self, op: &'static str, name: &'static str, shape: f64) -> Result<f64> {
        if !(shape > 0. && shape.is_finite()) {
            return Err(Error::value(op, name, "a positive number", shape).into());
        }
        if shape < 1. {
            // A number of shape + 1 times a uniform one to the power of 1 / shape.
            return Ok(self.log_gamma(op, name, shape + 1.)? + self.positive().ln() / shape);
        }
        let d = shape - 1. / 3.;
        let c = 1. / (9. * d).sqrt();
        loop {
            // Box and Muller.
            let z = (-2. * self.positive().ln()).sqrt() * (std::f64::consts::TAU * self.f64()).cos();
            let v = (1. + c * z).powi(3);
            if v > 0. && self.positive().ln() < 0.5 * z * z + d * (1. - v + v.ln()) {
                return Ok(d.ln() + v.ln());
            }
        }
    }

    /// Uniform in `(0, 1]`.
    fn positive(&self) -> f64 {
        1. - self.f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(xs: &[f64]) -> (f64, f64) {
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64)
    }

    #[test]
    fn gamma_numbers_have_their_mean_and_variance() -> Result<()> {
        let generator = Generator::new(3);
        for shape in [0.3, 1., 2.5, 40.] {
            let xs: Vec<f64> = (0..40_000).map(|_| generator.gamma(shape)).collect::<Result<_>>()?;
            let (mean, variance) = moments(&xs);
            // Both equal the shape; five standard errors of the mean, and more of the variance, whose kurtosis is larger.
            let error = 5. * (shape / 40_000.).sqrt();
            assert!((mean - shape).abs() < error, "{shape}: mean {mean}");
            assert!((variance / shape - 1.).abs() < 0.1, "{shape}: variance {variance}");
        }
        Ok(())
    }

    #[test]
    fn beta_numbers_follow_their_law() -> Result<()> {
        let generator = Generator::new(4);
        for (a, b) in [(0.8, 0.8), (1., 1.), (0.2, 0.7), (5., 2.)] {
            let xs: Vec<f64> = (0..40_000).map(|_| generator.beta(a, b)).collect::<Result<_>>()?;
            assert!(xs.iter().all(|x| (0. ..=1.).contains(x)));
            let (mean, variance) = moments(&xs);
            let expected = a * b / ((a + b) * (a + b) * (a + b + 1.));
            assert!((mean - a / (a + b)).abs() < 5. * (expected / 40_000.).sqrt(), "{a} {b}: mean {mean}");
            assert!((variance / expected - 1.).abs() < 0.05, "{a} {b}: variance {variance}");
        }
        // With both parameters 1 the numbers are uniform.
        let below = (0..40_000).filter(|_| generator.beta(1., 1.).is_ok_and(|x| x < 0.1)).count();
        assert!((3700..4300).contains(&below), "{below}");
        Ok(())
    }

    #[test]
    fn tiny_parameters_give_zeros_and_ones_and_nothing_else() -> Result<()> {
        let generator = Generator::new(5);
        let xs: Vec<f64> = (0..2000).map(|_| generator.beta(1e-6, 1e-6)).collect::<Result<_>>()?;
        assert!(xs.iter().all(|x| !(1e-3..=1. - 1e-3).contains(x)));
        let ones = xs.iter().filter(|&&x| x > 0.5).count();
        assert!((850..1150).contains(&ones), "{ones}");
        Ok(())
    }

    #[test]
    fn parameters_that_are_not_positive_are_refused() {
        let generator = Generator::new(1);
        for wrong in [0., -1., f64::NAN, f64::INFINITY] {
            assert!(generator.gamma(wrong).is_err());
            assert!(generator.beta(wrong, 1.).is_err());
            assert!(generator.beta(1., wrong).is_err());
        }
    }
}
