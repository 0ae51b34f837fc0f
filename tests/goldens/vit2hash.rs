//! Losses of learned hashing with their gradients, the classic methods, and metrics of ranked codes.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};
use sconce::hash::losses::{
    Vit2HashWeights, bit_kl, central_quantisation, central_similarity, code_contrast, greedy_quantisation,
    greedy_similarity, relations, soft_quantise, vit2hash, weighted_contrast,
};
use sconce::hash::{
    Codes, FitOptions, Hasher, Itq, ItqConfig, ItqModel, Lsh, LshConfig, LshModel, SpectralHashing,
    SpectralHashingConfig, TrainSet, hash_centers, itq_rotation,
};
use sconce::metrics::{Denominator, Ranking};
use sconce::ops::matmul;
use sconce_tests::golden::{Case, DOUBLE, GRADIENT, OUTPUT, Result, Tensors, Tolerance, compare, equal};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// For metrics: both sides compute in double precision, in another order.
const METRIC: Tolerance = Tolerance { relative: 1e-9, absolute: 0.0 };

pub(crate) fn run(case: &Case) -> Result<()> {
    let file = case.tensors()?;
    let mut json = case.json()?;
    // A description of the tensors, which the file has itself.
    json.as_object_mut().and_then(|json| json.remove("tensors")).ok_or("no table of tensors")?;
    match () {
        () if file.find("in.X").is_some() => classic(&file, serde_json::from_value(json)?),
        () if file.find("in.qB").is_some() => metrics(&file, serde_json::from_value(json)?),
        () => losses(&file, serde_json::from_value(json)?),
    }
}

/// A reference that stands in the JSON.
fn number(what: &str, found: f64, reference: f64, tolerance: Tolerance) -> Result<()> {
    let scalar = |value: f64| Tensor::new(value, &Device::Cpu);
    compare(what, &scalar(found)?, &scalar(reference)?, tolerance)
}

fn scalar(what: &str, found: &Tensor, reference: f64) -> Result<()> {
    number(what, found.to_dtype(DType::F64)?.to_scalar()?, reference, OUTPUT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Losses {
    #[serde(rename = "seed")]
    _seed: u64,
    losses: Map<String, Value>,
    spq: Spq,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spq {
    tau_q: f64,
    books: usize,
    words: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cib {
    contrast: f64,
    kl: f64,
    total: f64,
    temperature: f64,
    weight: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Greedy {
    sim: f64,
    /// With its weight.
    quant: f64,
    alpha: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Csq {
    center: f64,
    quant: f64,
    lam: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    rec: f64,
    kl: f64,
    quant: f64,
    sim: f64,
    total: f64,
    tau: f64,
    weights: Weights,
    #[serde(rename = "status")]
    _status: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    rec: f64,
    kl: f64,
    quant: f64,
    sim: f64,
}

/// Temperature of weighted contrastive hashing, which its file does not say: that of the released code.
const WCH_TEMPERATURE: f64 = 0.3;

/// Inputs as variables, by their names without `in.`.
struct Inputs<'a> {
    file: &'a Tensors,
    vars: BTreeMap<String, Var>,
}

impl Inputs<'_> {
    fn get(&mut self, name: &str) -> Result<Tensor> {
        if !self.vars.contains_key(name) {
            let var = Var::from_tensor(self.file.get(&format!("in.{name}"))?)?;
            self.vars.insert(name.into(), var);
        }
        Ok(self.vars[name].as_tensor().clone())
    }

    /// Holds the gradients of a loss against those of the inputs whose names begin with `prefix`.
    fn gradients(&self, prefix: &str, loss: &Tensor) -> Result<()> {
        let grads: GradStore = loss.backward()?;
        let mut compared = 0;
        for (name, reference) in self.file.with_prefix("grad.").filter(|(name, _)| name.starts_with(prefix)) {
            let var = self.vars.get(name).ok_or_else(|| format!("grad.{name} is of no input"))?;
            let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
            compare(&format!("grad.{name}"), found, reference, GRADIENT)?;
            compared += 1;
        }
        if compared == 0 { Err(format!("no gradient of {prefix} to compare").into()) } else { Ok(()) }
    }
}

fn losses(file: &Tensors, json: Losses) -> Result<()> {
    let known = ["cib", "greedy", "csq", "wch", "spq", "v2h"];
    let group = |name: &str| name.split('.').nth(1).unwrap_or_default().to_owned();
    if let Some((name, _)) = file.iter().find(|(name, _)| !known.contains(&group(name).as_str())) {
        return Err(format!("nothing looks at the tensor {name}").into());
    }
    let mut inputs = Inputs { file, vars: BTreeMap::new() };
    for (name, value) in json.losses {
        match name.as_str() {
            "cib" => cib(&mut inputs, serde_json::from_value(value)?),
            "greedyhash_unsup" => greedy(&mut inputs, serde_json::from_value(value)?),
            "csq" => csq(&mut inputs, serde_json::from_value(value)?),
            "wch" => wch(&mut inputs, serde_json::from_value(value)?),
            "vit2hash_reference" => reference(&mut inputs, serde_json::from_value(value)?),
            _ => Err(format!("no loss named {name}").into()),
        }
        .map_err(|e| format!("{name}: {e}"))?;
    }
    spq(&mut inputs, json.spq)
}

fn cib(inputs: &mut Inputs, json: Cib) -> Result<()> {
    let (hi, hj) = (inputs.get("cib.hi")?, inputs.get("cib.hj")?);
    let (contrast, kl) = (code_contrast(&hi, &hj, json.temperature)?, bit_kl(&hi, &hj)?);
    let total = (&contrast + (&kl * json.weight)?)?;
    scalar("contrast", &contrast, json.contrast)?;
    scalar("kl", &kl, json.kl)?;
    scalar("total", &total, json.total)?;
    inputs.gradients("cib.", &total)
}

fn greedy(inputs: &mut Inputs, json: Greedy) -> Result<()> {
    let (h, x) = (inputs.get("greedy.h")?, inputs.get("greedy.x")?);
    let (sim, quant) = (greedy_similarity(&h, &x)?, (greedy_quantisation(&h)? * json.alpha)?);
    scalar("sim", &sim, json.sim)?;
    scalar("quant", &quant, json.quant)?;
    inputs.gradients("greedy.", &(sim + quant)?)
}

fn csq(inputs: &mut Inputs, json: Csq) -> Result<()> {
    let u = inputs.get("csq.u")?;
    let wanted = inputs.file.get("out.csq.centers")?;
    let (classes, bits) = wanted.dims2()?;
    let centers: Vec<f32> = hash_centers(classes, bits, 0)?.concat().into_iter().map(f32::from).collect();
    let centers = Tensor::from_vec(centers, (classes, bits), u.device())?;
    equal("centers", &centers, wanted)?;
    let own = centers.index_select(&inputs.file.get("in.csq.y")?.to_dtype(DType::U32)?, 0)?;
    let (center, quant) = (central_similarity(&u, &own)?, central_quantisation(&u)?);
    scalar("center", &center, json.center)?;
    scalar("quant", &quant, json.quant)?;
    inputs.gradients("csq.", &(center + (quant * json.lam)?)?)
}

fn wch(inputs: &mut Inputs, wanted: f64) -> Result<()> {
    let weights = inputs.file.get("in.wch.w")?;
    let loss = weighted_contrast(&inputs.get("wch.h1")?, &inputs.get("wch.h2")?, weights, WCH_TEMPERATURE)?;
    scalar("loss", &loss, wanted)?;
    inputs.gradients("wch.", &loss)
}

fn reference(inputs: &mut Inputs, json: Reference) -> Result<()> {
    let Weights { rec, kl, quant, sim } = json.weights;
    let weights = Vit2HashWeights { rec, kl, quant, sim, temperature: json.tau };
    let (teacher, student, h) = (inputs.get("v2h.f_orig")?, inputs.get("v2h.f_corrupt")?, inputs.get("v2h.h")?);
    let found = vit2hash(&teacher, &student, &h, &weights)?;
    for (name, found, wanted) in [
        ("rec", &found.rec, json.rec),
        ("kl", &found.kl, json.kl),
        ("quant", &found.quant, json.quant),
        ("sim", &found.sim, json.sim),
        ("total", &found.total, json.total),
    ] {
        scalar(name, found, wanted)?;
    }
    for (name, found) in [("logp", relations(&teacher, json.tau)?), ("logq", relations(&h.tanh()?, json.tau)?)] {
        compare(name, &found, &without_diagonal(inputs.file.get(&format!("out.v2h.{name}"))?)?, OUTPUT)?;
    }
    inputs.gradients("v2h.", &found.total)
}

/// The file has 0 there.
fn without_diagonal(square: &Tensor) -> Result<Tensor> {
    let rows = square.to_vec2::<f32>()?;
    let n = rows.len();
    let others = rows.iter().enumerate().flat_map(|(i, row)| (0..n).filter(move |j| *j != i).map(|j| row[j]));
    Ok(Tensor::from_vec(others.collect::<Vec<_>>(), (n, n - 1), &Device::Cpu)?)
}

fn spq(inputs: &mut Inputs, json: Spq) -> Result<()> {
    let (x, codebook) = (inputs.get("spq.x")?, inputs.file.get("in.spq.codebook")?);
    if codebook.dim(0)? != json.words {
        return Err(format!("spq: a codebook of {} words, not {}", codebook.dim(0)?, json.words).into());
    }
    let z = soft_quantise(&x, codebook, json.books, json.tau_q)?;
    compare("out.spq.z", &z, inputs.file.get("out.spq.z")?, OUTPUT)?;
    inputs.gradients("spq.", &z.sqr()?.sum_all()?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Classic {
    #[serde(rename = "seed")]
    _seed: u64,
    bits: usize,
    itq_iters: usize,
    itq_quant_error: Vec<f64>,
    itq_quant_final: f64,
    sh_modes: Vec<(f64, usize, usize)>,
    #[serde(rename = "note")]
    _note: String,
}

fn classic(file: &Tensors, json: Classic) -> Result<()> {
    let xs = file.get("in.X")?;
    let (data, options) = (TrainSet::new(xs), FitOptions::default());
    let codes = |name: &str, hasher: &dyn Hasher| -> Result<()> {
        let found = hasher.encode(xs)?.to_signs()?;
        equal(name, &found, file.get(name)?)
    };

    let mut lsh = Lsh::new(&LshConfig { bits: json.bits, ..Default::default() })?;
    lsh.fit(&data, &options)?;
    let LshModel { mean, .. } = lsh.model.clone().ok_or("LSH has no model")?;
    compare("out.mean", &mean, file.get("out.mean")?, DOUBLE)?;
    lsh.model = Some(LshModel { mean: mean.clone(), projection: file.get("in.lsh_proj")?.clone() });
    codes("out.lsh_codes", &lsh)?;

    // Components by a fit, the rotation from the file's start.
    let mut itq = Itq::new(&ItqConfig { bits: json.bits, iterations: 1, ..Default::default() })?;
    itq.fit(&data, &options)?;
    let ItqModel { mean, pca, .. } = itq.model.clone().ok_or("ITQ has no model")?;
    compare("out.pca", &pca, file.get("out.pca")?, DOUBLE)?;
    let projected = matmul(&xs.broadcast_sub(&mean)?, &pca)?;
    let found = itq_rotation(&projected, file.get("in.R0")?, json.itq_iters)?;
    compare("out.itq_R", &found.rotation, file.get("out.itq_R")?, DOUBLE)?;
    let (last, before) = found.losses.split_last().ok_or("no quantisation loss")?;
    let column = |values: &[f64]| Tensor::new(values, &Device::Cpu);
    compare("itq_quant_error", &column(before)?, &column(&json.itq_quant_error)?, METRIC)?;
    number("itq_quant_final", *last, json.itq_quant_final, METRIC)?;
    itq.model = Some(ItqModel { mean, pca: pca.clone(), rotation: found.rotation });
    codes("out.itq_codes", &itq)?;

    let mut spectral = SpectralHashing::new(&SpectralHashingConfig { bits: json.bits })?;
    spectral.fit(&data, &options)?;
    codes("out.sh_codes", &spectral)?;
    let model = spectral.model.as_ref().ok_or("spectral hashing has no model")?;
    let frequencies: Vec<f64> = json.sh_modes.iter().map(|(frequency, ..)| *frequency).collect();
    // The reference widens the ranges by an epsilon.
    compare("sh_modes", &model.frequency, &column(&frequencies)?, DOUBLE)?;
    let components: Vec<u32> = json.sh_modes.iter().map(|(_, component, _)| *component as u32).collect();
    let wanted = pca.index_select(&Tensor::new(components, &Device::Cpu)?, 1)?;
    compare("components of the modes", &model.components, &wanted, DOUBLE)?;
    // The range is pi m / frequency, so that m is told apart by it.
    let ranges = (projected.max(0)? - projected.min(0)?)?.to_vec1::<f64>()?;
    for (frequency, component, m) in json.sh_modes {
        let range = ranges.get(component).ok_or("a mode of no component")?;
        number("order of a mode", frequency * range / std::f64::consts::PI, m as f64, DOUBLE)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    #[serde(rename = "seed")]
    _seed: u64,
    bits: usize,
    map_at: BTreeMap<usize, f64>,
    ap_per_query_at20: Vec<f64>,
    #[serde(rename = "map_at_minRk")]
    map_at_min: BTreeMap<usize, f64>,
    /// What an unstable sort made of ties: nothing to reproduce.
    #[serde(rename = "official_argsort_map")]
    _official_argsort_map: BTreeMap<usize, f64>,
    precision_at: BTreeMap<usize, f64>,
    precision_hamming2: f64,
    precision_hamming2_per_query: Vec<f64>,
    pr_by_radius: Vec<(Option<f64>, f64)>,
    tie_aware_map_full: f64,
    #[serde(rename = "note")]
    _note: String,
}

fn metrics(file: &Tensors, json: Metrics) -> Result<()> {
    // Distances from packed codes, so that these are held against the reference too.
    let (queries, items) = (Codes::from_signs(file.get("in.qB")?)?, Codes::from_signs(file.get("in.rB")?)?);
    if queries.bits() != json.bits {
        return Err(format!("codes of {} bits, not {}", queries.bits(), json.bits).into());
    }
    let mut distances = vec![];
    for i in 0..queries.len() {
        for j in 0..items.len() {
            distances.push(queries.distance(i, &items, j)? as f32);
        }
    }
    let distances = Tensor::from_vec(distances, (queries.len(), items.len()), &Device::Cpu)?;
    equal("out.hamming", &distances, file.get("out.hamming")?)?;
    // Relevant is what shares a label.
    let shared = matmul(file.get("in.qL")?, &file.get("in.rL")?.t()?)?;
    let relevant = shared.gt(0.0)?;
    equal("out.rel", &relevant, file.get("out.rel")?)?;

    let ranking = Ranking::by_distance(&distances, &relevant)?;
    for (k, wanted) in &json.map_at {
        number(&format!("map_at {k}"), ranking.map_at(*k, Denominator::Found)?, *wanted, METRIC)?;
    }
    for (k, wanted) in &json.map_at_min {
        number(&format!("map_at_minRk {k}"), ranking.map_at(*k, Denominator::Possible)?, *wanted, METRIC)?;
    }
    for (k, wanted) in &json.precision_at {
        number(&format!("precision_at {k}"), ranking.precision_at(*k)?, *wanted, METRIC)?;
    }
    let column = |values: &[f64]| Tensor::new(values, &Device::Cpu);
    let found = column(&ranking.average_precisions_at(20, Denominator::Found)?)?;
    compare("ap_per_query_at20", &found, &column(&json.ap_per_query_at20)?, METRIC)?;
    number("precision_hamming2", ranking.precision_within(2.0), json.precision_hamming2, METRIC)?;
    for (i, wanted) in json.precision_hamming2_per_query.iter().enumerate() {
        let row = |xs: &Tensor| xs.narrow(D::Minus2, i, 1);
        let one = Ranking::by_distance(&row(&distances)?, &row(&relevant)?)?;
        number(&format!("precision_hamming2 of query {i}"), one.precision_within(2.0), *wanted, METRIC)?;
    }
    let curve = ranking.curve((0..json.pr_by_radius.len()).map(|radius| radius as f64));
    for (point, (precision, recall)) in curve.iter().zip(&json.pr_by_radius) {
        let what = format!("radius {}", point.radius);
        match (point.precision, precision) {
            (Some(found), Some(wanted)) => number(&what, found, *wanted, METRIC)?,
            (None, None) => {}
            (found, wanted) => return Err(format!("{what}: precision {found:?} instead of {wanted:?}").into()),
        }
        number(&what, point.recall, *recall, METRIC)?;
    }
    number("tie_aware_map_full", ranking.tie_aware_map(), json.tie_aware_map_full, METRIC)
}
