//! The metrics against the numbers of the programs whose conventions they follow: scikit-learn, pytorch-metric-learning,
//! BasicSR, the public hashing code.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_metrics::{
    BinaryScores, Contingency, Denominator, EntropyMean, Error, ImageOptions, MaskScores, Ranking, mask_scores,
    mean_mask_scores, psnr, ssim,
};
use serde_json::Value;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn reference(name: &str) -> (Value, HashMap<String, Tensor>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let json = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let tensors = candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu).unwrap();
    (serde_json::from_str(&json).unwrap(), tensors)
}

#[track_caller]
fn close(found: f64, reference: &Value) {
    let reference = reference.as_f64().expect("a number");
    assert!((found - reference).abs() < 1e-9, "{found} instead of {reference}");
}

fn labels(tensor: &Tensor) -> Vec<usize> {
    tensor.to_vec1::<i64>().unwrap().into_iter().map(|label| label as usize).collect()
}

#[test]
fn hashing() -> Outcome {
    let (json, tensors) = reference("vit2hash_hash_metrics");
    let ranking = Ranking::by_distance(&tensors["out.hamming"], &tensors["out.rel"])?;
    for k in [5, 20, 50, 60] {
        let at = k.to_string();
        close(ranking.map_at(k, Denominator::Found)?, &json["map_at"][&at]);
        close(ranking.map_at(k, Denominator::Possible)?, &json["map_at_minRk"][&at]);
        close(ranking.precision_at(k)?, &json["precision_at"][&at]);
    }
    for (found, value) in
        ranking.average_precisions_at(20, Denominator::Found)?.iter().zip(json["ap_per_query_at20"].as_array().unwrap())
    {
        close(*found, value);
    }
    close(ranking.precision_within(2.0), &json["precision_hamming2"]);
    close(ranking.tie_aware_map(), &json["tie_aware_map_full"]);
    let curve = ranking.curve((0..=16).map(f64::from));
    let points = json["pr_by_radius"].as_array().unwrap();
    assert_eq!(curve.len(), points.len());
    for (found, point) in curve.iter().zip(points) {
        assert_eq!(found.precision.is_none(), point[0].is_null());
        if let Some(precision) = found.precision {
            close(precision, &point[0]);
        }
        close(found.recall, &point[1]);
    }
    Ok(())
}

#[test]
fn metric_learning() -> Outcome {
    let (json, tensors) = reference("ssl_vit_retrieval_metrics");
    let xs = tensors["in.X"].to_dtype(DType::F64)?;
    let rows = xs.to_vec2::<f64>()?;
    let classes = labels(&tensors["in.labels"]);
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let distances: Vec<f64> =
        rows.iter().flat_map(|a| rows.iter().map(|b| distance(a, b)).collect::<Vec<_>>()).collect();
    let distances = Tensor::from_vec(distances, (rows.len(), rows.len()), &Device::Cpu)?;
    let ranking = Ranking::within(&distances, &classes)?;
    let reference = &json["pml"];
    close(ranking.map_at_r(), &reference["mean_average_precision_at_r"]);
    // The reference looks no farther than the largest number of relevant items.
    let largest = classes.iter().map(|class| classes.iter().filter(|c| *c == class).count() - 1).max().unwrap();
    let reciprocal = ranking.mean_reciprocal_rank_at(largest)?;
    // It computes this one in single precision.
    assert!((reciprocal - reference["mean_reciprocal_rank"].as_f64().unwrap()).abs() < 1e-6, "{reciprocal}");
    close(ranking.precision_at(1)?, &reference["precision_at_1"]);
    close(ranking.r_precision(), &reference["r_precision"]);
    for k in [1, 2, 4, 8] {
        close(ranking.recall_at(k)?, &json["recall_at"][k.to_string()]);
    }
    let table = Contingency::new(&labels(&tensors["in.kmeans_assign"]), &classes)?;
    close(table.nmi(EntropyMean::Arithmetic), &json["nmi_arithmetic"]);
    close(table.nmi(EntropyMean::Geometric), &json["nmi_geometric"]);
    close(table.ami(), &json["ami"]);
    Ok(())
}

#[test]
fn lesions() -> Outcome {
    let (json, tensors) = reference("skin_metrics");
    let classes = labels(&tensors["in.y"]);
    let scores = tensors["in.score"].to_vec2::<f64>()?;
    let json = &json["metrics"];
    let mut compared = 0;
    for name in ["melanoma", "seborrheic_keratosis"] {
        // Which class a name stands for is not written down: the one whose area agrees.
        for class in 0..3 {
            let column: Vec<f64> = scores.iter().map(|row| row[class]).collect();
            let actual: Vec<bool> = classes.iter().map(|label| *label == class).collect();
            let binary = BinaryScores::new(&column, &actual)?;
            let reference = &json[name];
            if (binary.roc_auc()? - reference["auc"].as_f64().unwrap()).abs() > 1e-9 {
                continue;
            }
            compared += 1;
            close(binary.average_precision()?, &reference["ap"]);
            let counts = binary.counts_at(0.5);
            close(counts.sensitivity().unwrap(), &reference["sens"]);
            close(counts.specificity().unwrap(), &reference["spec"]);
            close(counts.accuracy().unwrap(), &reference["acc"]);
            for percent in [82, 89, 95] {
                let found = binary.specificity_at(f64::from(percent) / 100.0)?;
                close(found, &reference[format!("spec_at_sens{percent}")]);
            }
        }
    }
    assert_eq!(compared, 2);

    let masks = mask_scores(&tensors["in.pred_mask"], &tensors["in.gt_mask"])?;
    let same = |found: &MaskScores, reference: &Value| {
        close(found.jaccard, &reference["jaccard"]);
        close(found.dice, &reference["dice"]);
        close(found.sensitivity, &reference["sens"]);
        close(found.specificity, &reference["spec"]);
        close(found.accuracy, &reference["acc"]);
    };
    let references = json["seg_per_image"].as_array().unwrap();
    assert_eq!(masks.len(), references.len());
    masks.iter().zip(references).for_each(|(found, reference)| same(found, reference));
    same(&mean_mask_scores(&masks)?, &json["seg_mean"]);
    Ok(())
}

#[test]
fn pictures() -> Outcome {
    let (json, tensors) = reference("restoreformer_metrics_degradation");
    let json = &json["metrics"];
    // (H, W, BGR) to (RGB, H, W).
    let rgb = |name: &str| -> candle_core::Result<Tensor> {
        let image = &tensors[name];
        Tensor::cat(&[image.narrow(2, 2, 1)?, image.narrow(2, 1, 1)?, image.narrow(2, 0, 1)?], 2)?.permute((2, 0, 1))
    };
    let (a, b) = (rgb("in.img1")?, rgb("in.img2")?);
    let whole = ImageOptions::default();
    close(psnr(&a, &b, whole)?, &json["psnr"]);
    close(ssim(&a, &b, whole)?, &json["ssim"]);
    let cropped = ImageOptions { crop: 4, ..whole };
    close(psnr(&a, &b, cropped)?, &json["psnr_crop4"]);
    close(ssim(&a, &b, cropped)?, &json["ssim_crop4"]);
    // The reference rounds luma to single precision on the way.
    let luma = ImageOptions { luma: true, ..whole };
    for (found, name) in [(psnr(&a, &b, luma)?, "psnr_y"), (ssim(&a, &b, luma)?, "ssim_y")] {
        let reference = json[name].as_f64().unwrap();
        assert!((found - reference).abs() < 1e-6 * reference, "{name}: {found} instead of {reference}");
    }
    assert_eq!(psnr(&a, &a, whole)?, f64::INFINITY);
    assert!((ssim(&a, &a, whole)? - 1.0).abs() < 1e-12);
    Ok(())
}

#[test]
fn input_that_nothing_can_be_computed_from_is_an_error() -> Outcome {
    let cpu = &Device::Cpu;
    let distances = Tensor::new(&[[0.1, 0.2], [0.3, 0.4]], cpu)?;
    let none = Tensor::new(&[[1u8, 0], [0, 0]], cpu)?;
    assert!(matches!(Ranking::by_distance(&distances, &none), Err(Error::NoPositive { query: 1 })));
    assert!(matches!(Ranking::by_distance(&distances, &none.narrow(0, 0, 1)?), Err(Error::Shape { .. })));
    assert!(matches!(Ranking::within(&distances, &[0, 1]), Err(Error::NoPositive { query: 0 })));
    let nan = Tensor::new(&[[0.1, f64::NAN]], cpu)?;
    assert!(matches!(Ranking::by_distance(&nan, &none.narrow(0, 0, 1)?), Err(Error::Nan { row: 0, column: 1 })));
    let ranking = Ranking::by_distance(&distances, &Tensor::ones((2, 2), DType::U8, cpu)?)?;
    assert!(matches!(ranking.precision_at(0), Err(Error::ZeroK)));
    assert!(matches!(BinaryScores::new(&[0.1], &[true])?.roc_auc(), Err(Error::OneClass)));
    assert!(matches!(BinaryScores::new(&[], &[]), Err(Error::Empty)));
    assert!(matches!(Contingency::new(&[1], &[]), Err(Error::Shape { .. })));
    let small = Tensor::zeros((3, 10, 30), DType::F32, cpu)?;
    assert!(matches!(ssim(&small, &small, ImageOptions::default()), Err(Error::Shape { .. })));
    let grey = Tensor::zeros((1, 30, 30), DType::F32, cpu)?;
    assert!(matches!(psnr(&grey, &grey, ImageOptions { luma: true, crop: 0 }), Err(Error::Shape { .. })));
    assert!(matches!(psnr(&grey, &grey, ImageOptions { luma: false, crop: 15 }), Err(Error::Shape { .. })));
    let masks = Tensor::zeros((0, 4), DType::U8, cpu)?;
    assert!(matches!(mask_scores(&masks, &masks), Err(Error::Empty)));
    Ok(())
}
