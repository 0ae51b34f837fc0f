//! A model of the registry with the options of the command line.

use sconce::backbones::{BackboneConfig, pretrained};
use serde_json::{Map, Value};

use super::Options;
use crate::Error;

/// The model's options for this number of classes.
pub(super) fn config(options: &Options, classes: usize) -> Result<BackboneConfig, Error> {
    let record = pretrained(&options.model).map_err(|error| Error::new(error.to_string()))?;
    let fail = |error: serde_json::Error| Error::new(format!("options of {}: {error}", options.model));
    let mut value = serde_json::to_value(&record.config).map_err(fail)?;
    if let Some(fields) = value.as_object_mut() {
        for text in &options.set {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Error::new(format!("--set {text}: KEY=VALUE is wanted, as depth=6")))?;
            // What is no JSON is a word.
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            replace(fields, &options.model, key, value)?;
        }
        if let Some(rate) = options.drop_path {
            replace(fields, &options.model, "drop_path_rate", Value::from(rate))?;
        }
        if let Some(side) = options.image_size
            && let Some(known) = fields.get("img_size")
        {
            let sides = if known.is_array() { Value::from(vec![side, side]) } else { Value::from(side) };
            replace(fields, &options.model, "img_size", sides)?;
        }
    }
    let config: BackboneConfig = serde_json::from_value(value).map_err(fail)?;
    match config.input_shape()[..] {
        [3, _, _] => {}
        ref shape => {
            let message = format!("{} wants input of shape {shape:?}; pictures have 3 channels", options.model);
            return Err(Error::new(message));
        }
    }
    Ok(config.with_num_classes(classes))
}

fn replace(fields: &mut Map<String, Value>, model: &str, key: &str, value: Value) -> Result<(), Error> {
    match fields.get_mut(key) {
        Some(field) => *field = value,
        None => {
            let known: Vec<&str> = fields.keys().filter(|key| *key != "family").map(String::as_str).collect();
            return Err(Error::new(format!("{model} has no option {key}, only {}", known.join(", "))));
        }
    }
    Ok(())
}
