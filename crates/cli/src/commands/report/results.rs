//! What was measured, in memory and in `results.json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparamx_compress::Method;
use sparamx_format::ElementKind;

use super::setting::Setting;
use crate::{interrupt, units};

/// Name of the file.
const FILE: &str = "results.json";

/// Everything measured so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// What all rows have in common.
    pub inputs: Inputs,
    /// Errors of single layers.
    pub layers: Vec<Layers>,
    /// The rows, in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// What all rows have in common. Other inputs make another report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The model, by the last part of its name.
    pub model: String,
    /// Its weights, counted.
    pub parameters: u64,
    /// Texts that perplexity is measured on.
    pub texts: Vec<File>,
    /// Tokens in a window.
    pub ctx: usize,
    /// Questions.
    pub questions: Vec<File>,
    /// Questions taken of each file, at most.
    pub limit: Option<usize>,
    /// The text to calibrate with; none if no setting needs one.
    #[serde(flatten)]
    pub calibration: Option<Text>,
    /// Columns that share a scale, of int4.
    pub group: usize,
}

/// A text to calibrate with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Where it is from.
    pub calibration: String,
    /// Its windows.
    pub calibration_windows: usize,
    /// Tokens in one of them.
    pub calibration_tokens: usize,
}

/// A file by its name, and its size, as another file may have the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Its name without the folder.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A setting and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Bytes of all weights in the files, embedding and output head included.
    pub bytes: u64,
    /// Bytes of weights in memory, before any is expanded.
    pub memory_bytes: u64,
    /// Over all texts.
    pub perplexity: f64,
    /// Over all texts.
    pub bits_per_byte: f64,
    /// For each text.
    pub text_perplexities: Vec<f64>,
    /// For each file of questions.
    pub accuracies: Vec<Accuracy>,
    /// Mean error of the outputs of layers, as `compress` reports it; none without calibration.
    pub layer_error: Option<f64>,
    /// What `compress` took.
    pub compress_seconds: f64,
}

/// Figures of a file of questions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accuracy {
    /// The task.
    pub task: String,
    /// Number of questions.
    pub questions: usize,
    /// Share of right answers, choices by log likelihood.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: Option<f64>,
    /// The same, choices by log likelihood for each character.
    pub acc_norm: Option<f64>,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
}

/// Errors of single layers at a sparsity, in bf16: `||X (W' - W)^T|| / ||X W^T||` with X the inputs in the dense model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layers {
    /// The share of zeros.
    pub sparsity: f64,
    /// One for each tensor.
    pub tensors: Vec<Tensor>,
}

/// Errors of a tensor, by those methods that were asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Pruned by magnitude, the smallest of the tensor.
    pub magnitude: f64,
    /// Pruned by magnitude, the smallest of each row, as Wanda does.
    pub magnitude_by_row: f64,
    /// Pruned by Wanda.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanda: Option<f64>,
    /// Pruned by SparseGPT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsegpt: Option<f64>,
}

impl Layers {
    /// Whether they have the errors of a method.
    pub fn has(&self, method: Method) -> bool {
        self.tensors.iter().all(|tensor| match method {
            Method::Magnitude => true,
            Method::Wanda => tensor.wanda.is_some(),
            Method::SparseGpt => tensor.sparsegpt.is_some(),
        })
    }
}

impl Results {
    /// Those in the folder if there are any, or empty ones. The folder is made.
    ///
    /// # Errors
    /// The folder cannot be made; what is there cannot be read, or is of other inputs.
    pub fn open(folder: &Path, inputs: Inputs) -> Result<Self> {
        let found = open(folder, |found: &Self| found.inputs.go_with(&inputs))?;
        Ok(match found {
            Some(mut found) => {
                found.inputs.calibration = found.inputs.calibration.or(inputs.calibration);
                found
            }
            None => Results {
                inputs,
                layers: Vec::new(),
                rows: Vec::new(),
            },
        })
    }

    /// Writes them: complete, or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save(folder, self)
    }

    /// Takes in errors of layers, in place of those at the same sparsity.
    pub fn add_layers(&mut self, layers: Layers) {
        self.layers
            .retain(|known| known.sparsity != layers.sparsity);
        self.layers.push(layers);
        self.layers
            .sort_by(|a, b| a.sparsity.total_cmp(&b.sparsity));
    }

    /// The row of a setting.
    pub fn row(&self, setting: &Setting) -> Option<&Row> {
        self.rows.iter().find(|row| row.setting == *setting)
    }

    /// The dense model in bf16, by which the others are measured.
    pub fn dense(&self) -> Option<&Row> {
        let dense = |row: &&Row| row.setting.way.is_none();
        let mut rows = self.rows.iter().filter(dense);
        rows.find(|row| row.setting.weights == ElementKind::Bf16)
    }

    /// The best dense row of at most as many bytes.
    pub fn dense_rival(&self, bytes: u64) -> Option<&Row> {
        let fits = |row: &&Row| row.setting.way.is_none() && row.bytes <= bytes;
        let rows = self.rows.iter().filter(fits);
        rows.min_by(|a, b| a.perplexity.total_cmp(&b.perplexity))
    }

    /// The best pruned row with this sparsity and these numbers.
    pub fn best(&self, sparsity: f64, weights: ElementKind) -> Option<&Row> {
        let fits = |row: &&Row| {
            let setting = &row.setting;
            setting.way.is_some() && setting.sparsity == sparsity && setting.weights == weights
        };
        let rows = self.rows.iter().filter(fits);
        rows.min_by(|a, b| a.perplexity.total_cmp(&b.perplexity))
    }

    /// The row of plain magnitude pruning with this sparsity, in bf16.
    pub fn magnitude(&self, sparsity: f64) -> Option<&Row> {
        self.rows.iter().find(|row| {
            let setting = &row.setting;
            let plain = |way: super::setting::Way| way.method == Method::Magnitude && !way.refit;
            setting.way.is_some_and(plain)
                && setting.sparsity == sparsity
                && setting.weights == ElementKind::Bf16
        })
    }
}

impl Inputs {
    /// Whether rows of both may stand in one table: those that were not calibrated go with any calibration.
    fn go_with(&self, other: &Inputs) -> bool {
        let calibration = match &self.calibration {
            Some(calibration) => Some(calibration),
            None => other.calibration.as_ref(),
        };
        let both = |inputs: &Inputs| Inputs {
            calibration: inputs.calibration.as_ref().or(calibration).cloned(),
            ..inputs.clone()
        };
        both(self) == both(other)
    }

    /// A line for each thing that the figures depend on.
    pub fn lines(&self) -> Vec<String> {
        let files = |files: &[File]| {
            let file = |file: &File| format!("{} ({})", file.name, units::bytes(file.bytes));
            files.iter().map(file).collect::<Vec<_>>().join(", ")
        };
        let mut lines = vec![
            format!(
                "Model: {}, {} parameters",
                self.model,
                units::count(self.parameters)
            ),
            format!(
                "Perplexity: {}, windows of {} tokens",
                files(&self.texts),
                self.ctx
            ),
        ];
        if let Some(text) = &self.calibration {
            lines.push(format!(
                "Calibration: {}, {} windows of {} tokens",
                text.calibration, text.calibration_windows, text.calibration_tokens
            ));
        }
        lines.push(format!("int4: a scale for {} columns", self.group));
        if !self.questions.is_empty() {
            let limit = self
                .limit
                .map(|limit| format!(", the first {limit} of each"));
            lines.push(format!(
                "Questions: {}{}",
                files(&self.questions),
                limit.unwrap_or_default()
            ));
        }
        lines
    }
}

impl File {
    /// The file at `path`.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(File {
            name: name.to_string_lossy().into_owned(),
            bytes: size.len(),
        })
    }
}

/// Makes the folder, and reads the results in it if there are any.
///
/// # Errors
/// The folder cannot be made; what is there cannot be read, or is not `wanted` because it is of other inputs.
pub fn open<T: DeserializeOwned>(folder: &Path, wanted: impl Fn(&T) -> bool) -> Result<Option<T>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found: T = serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "{}: not results of this version; remove it or choose another --output",
            path.display()
        )
    })?;
    if !wanted(&found) {
        bail!(
            "{}: results of another model, text or setting; remove it or choose another --output",
            path.display()
        );
    }
    Ok(Some(found))
}

/// Writes results: complete, or not at all.
///
/// # Errors
/// The folder cannot be written.
pub fn save(folder: &Path, results: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    write(folder, FILE, &text).map(drop)
}

/// Writes a file under a temporary name and renames it.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let (path, temporary) = (folder.join(name), folder.join(format!(".{name}.new")));
    let _watch = interrupt::watch();
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
