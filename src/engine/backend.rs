//! The three ways to run BLIP, behind one face: on candle image by image (the reference, and GGUF's
//! block formats on a CPU), on candle for a device, and on the CPU's own kernels.

use candle_core::{DType, Device, DeviceLocation, Tensor};

use crate::engine::{EngineInfo, GpuInfo};
use cutline_blip::cpu::{CpuImage, CpuModel, CpuSlot, Workspace};
use cutline_blip::gpu::{GpuRead, GpuScores, GpuSlot, GpuState};
use cutline_blip::{BlipConfig, BlipModel, GpuModel, ItemState};
use cutline_error::{Error, Result};
use cutline_generate::TopLogits;

/// A loaded model, ready to run.
#[derive(Debug)]
pub enum Backend {
    /// On candle.
    Candle(Box<BlipModel>),
    /// On candle for a device, with the captions that are being written there.
    Device(Box<(GpuModel, GpuState)>),
    /// On the kernels, with the memory that a pass needs.
    Packed(Box<(CpuModel, Workspace)>),
}

/// An encoded image, for the backend that made it.
#[derive(Debug)]
pub enum Encoded {
    /// On candle's device, `[tokens, width]`.
    Candle(Tensor),
    /// In plain memory.
    Packed(CpuImage),
}

impl Encoded {
    /// Bytes of the states.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Candle(states) => states.elem_count() * states.dtype().size_in_bytes(),
            Self::Packed(image) => size_of_val(image.states()),
        }
    }

    /// The vision tower's states, token after token.
    ///
    /// # Errors
    /// They cannot be copied from the device.
    pub fn states(&self) -> Result<Vec<f32>> {
        match self {
            Self::Candle(states) => {
                let flat = states.to_dtype(DType::F32).and_then(|states| states.flatten_all());
                flat.and_then(|flat| flat.to_vec1()).map_err(|error| {
                    Error::internal("the image's states cannot be read").with_source(error)
                })
            }
            Self::Packed(image) => Ok(image.states().to_vec()),
        }
    }
}

/// What an image's captions have come to, for the backend that began them.
#[derive(Debug)]
pub enum Item {
    /// On candle.
    Candle(ItemState),
    /// On candle for a device.
    Device(GpuSlot),
    /// On the kernels.
    Packed(CpuSlot),
}

/// What an item reads in a step.
#[derive(Debug)]
pub struct Read<'a> {
    /// Who.
    pub item: &'a mut Item,
    /// One token for each row, or the first tokens of an item that reads them in a step; see
    /// [`Backend::reads_prompts_in_steps`].
    pub tokens: &'a [u32],
    /// How many of each row's best tokens are enough; `None` if all logits are wanted.
    pub best: Option<usize>,
}

/// What a step says of an item's next tokens.
#[derive(Debug)]
pub enum Scores {
    /// All logits, `vocabulary` of every row.
    Logits(Vec<f32>),
    /// The best of every row; all of their logits, and all others of the rows, are finite.
    Best(Vec<TopLogits>),
    /// The logits are not finite.
    NotFinite,
}

impl From<BlipModel> for Backend {
    fn from(model: BlipModel) -> Self {
        Self::Candle(Box::new(model))
    }
}

impl From<CpuModel> for Backend {
    fn from(model: CpuModel) -> Self {
        let work = model.workspace();
        Self::Packed(Box::new((model, work)))
    }
}

impl TryFrom<GpuModel> for Backend {
    type Error = Error;

    fn try_from(model: GpuModel) -> Result<Self> {
        let state = model.state()?;
        Ok(Self::Device(Box::new((model, state))))
    }
}

/// Every item's part of all rows' logits.
fn shares(logits: &[f32], rows: &[usize], vocabulary: usize) -> Vec<Scores> {
    let mut rest = logits;
    let mut share = |rows: &usize| {
        let (own, behind) = rest.split_at(rows * vocabulary);
        rest = behind;
        Scores::Logits(own.to_vec())
    };
    rows.iter().map(&mut share).collect()
}

/// An image or an item came to the other backend than the one that made it.
fn mixed() -> Error {
    Error::internal("the states of two kinds of model were mixed")
}

impl Item {
    /// Sequences that are decoded for the image.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Candle(item) => item.rows(),
            Self::Device(item) => item.rows(),
            Self::Packed(item) => item.rows(),
        }
    }

    fn candle(&mut self) -> Result<&mut ItemState> {
        match self {
            Self::Candle(item) => Ok(item),
            _ => Err(mixed()),
        }
    }

    fn device(&mut self) -> Result<&mut GpuSlot> {
        match self {
            Self::Device(item) => Ok(item),
            _ => Err(mixed()),
        }
    }

    fn packed(&mut self) -> Result<&mut CpuSlot> {
        match self {
            Self::Packed(item) => Ok(item),
            _ => Err(mixed()),
        }
    }
}

impl Backend {
    /// Shapes and constants.
    #[must_use]
    pub fn config(&self) -> &BlipConfig {
        match self {
            Self::Candle(model) => model.config(),
            Self::Device(model) => model.0.config(),
            Self::Packed(model) => model.0.config(),
        }
    }

    /// Normalised planes `3 × height × width` → the vision tower's states.
    ///
    /// # Errors
    /// The pixels are no such image in whole patches, or the arithmetic failed.
    pub fn encode(&mut self, pixels: &[f32], width: usize, height: usize) -> Result<Encoded> {
        match self {
            Self::Candle(model) => model.encode(pixels, width, height).map(Encoded::Candle),
            Self::Device(_) => {
                let mut images = self.encode_all(&[pixels], width, height)?;
                images.pop().ok_or_else(|| Error::internal("an image was not encoded"))
            }
            Self::Packed(both) => {
                let (model, work) = &mut **both;
                model.encode(work, pixels, width, height).map(Encoded::Packed)
            }
        }
    }

    /// How many images of this size are encoded faster at once than one after another.
    #[must_use]
    pub fn vision_batch(&self, width: usize, height: usize) -> usize {
        match self {
            Self::Device(both) => both.0.vision_batch(width, height),
            Self::Candle(_) | Self::Packed(_) => 1,
        }
    }

    /// [`encode`](Self::encode) of images of one size, all at once where that is faster.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); then none is encoded.
    pub fn encode_all(
        &mut self,
        images: &[&[f32]],
        width: usize,
        height: usize,
    ) -> Result<Vec<Encoded>> {
        if let Self::Device(both) = self {
            let planes: Vec<_> = images.iter().map(|pixels| (*pixels, width, height)).collect();
            return Ok(both.0.encode(&planes)?.into_iter().map(Encoded::Candle).collect());
        }
        images.iter().map(|pixels| self.encode(pixels, width, height)).collect()
    }

    /// The state for one image's caption, of as many rows in the end as `rows`: one for now, and
    /// room for `capacity` tokens of each.
    ///
    /// # Errors
    /// The image is another backend's, or the arithmetic failed.
    pub fn begin(&mut self, image: &Encoded, capacity: usize, rows: usize) -> Result<Item> {
        match (self, image) {
            (Self::Device(both), Encoded::Candle(image)) => {
                let (model, state) = &mut **both;
                model.begin(state, image, capacity, rows).map(Item::Device)
            }
            (Self::Candle(model), Encoded::Candle(image)) => {
                model.begin(image, capacity).map(Item::Candle)
            }
            (Self::Packed(both), Encoded::Packed(image)) => {
                let (model, work) = &mut **both;
                Ok(Item::Packed(model.begin(work, image, capacity)))
            }
            _ => Err(mixed()),
        }
    }

    /// Whether an item's first tokens, however many, are best read in a step, together with others'.
    #[must_use]
    pub fn reads_prompts_in_steps(&self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// Computes what the items that were begun need of their images, if that was put off.
    ///
    /// # Errors
    /// The arithmetic failed.
    pub fn prefill_cross_kv(&mut self) -> Result<()> {
        match self {
            Self::Device(both) => both.0.prefill_cross_kv(&mut both.1),
            Self::Candle(_) | Self::Packed(_) => Ok(()),
        }
    }

    /// Reads the first tokens (decoder start and prompt) of a new item; the logits of the last.
    ///
    /// # Errors
    /// The tokens do not fit the item or the vocabulary, or the arithmetic failed.
    pub fn prefill(&mut self, item: &mut Item, tokens: &[u32]) -> Result<Vec<f32>> {
        match self {
            Self::Candle(model) => model.prefill(item.candle()?, tokens),
            Self::Device(_) => {
                self.read(&mut [Read { item: &mut *item, tokens, best: None }])?;
                self.logits(item)
            }
            Self::Packed(both) => {
                let (model, work) = &mut **both;
                model.prefill(work, item.packed()?, tokens).map(<[f32]>::to_vec)
            }
        }
    }

    /// One more token for every row of the items; the logits of every row of every item, in their
    /// order.
    ///
    /// # Errors
    /// The tokens do not fit the items or the vocabulary, or the arithmetic failed.
    pub fn step(&mut self, items: &mut [&mut Item], tokens: &[u32]) -> Result<Vec<f32>> {
        match self {
            Self::Candle(model) => {
                let mut items: Vec<_> =
                    items.iter_mut().map(|item| item.candle()).collect::<Result<_>>()?;
                model.step(&mut items, tokens)
            }
            Self::Device(_) => {
                let mut rest = tokens;
                let mut reads = Vec::with_capacity(items.len());
                for item in items.iter_mut() {
                    let (own, behind) = rest.split_at_checked(item.rows()).unwrap_or((rest, &[]));
                    reads.push(Read { item, tokens: own, best: None });
                    rest = behind;
                }
                if !rest.is_empty() {
                    return Err(Error::internal("a decoding step does not fit its items"));
                }
                self.read(&mut reads)?;
                let each =
                    items.iter().map(|item| self.logits(item)).collect::<Result<Vec<_>>>()?;
                Ok(each.concat())
            }
            Self::Packed(both) => {
                let (model, work) = &mut **both;
                let mut items: Vec<_> =
                    items.iter_mut().map(|item| item.packed()).collect::<Result<_>>()?;
                model.step(work, &mut items, tokens).map(<[f32]>::to_vec)
            }
        }
    }

    /// [`step`](Self::step), with as much of the logits as each item wants; what there is of each, in
    /// the order of the reads.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn read(&mut self, reads: &mut [Read<'_>]) -> Result<Vec<Scores>> {
        if let Self::Device(both) = self {
            let (model, state) = &mut **both;
            return read_on_device(model, state, reads);
        }
        let tokens: Vec<u32> = reads.iter().flat_map(|read| read.tokens).copied().collect();
        let rows: Vec<usize> = reads.iter().map(|read| read.tokens.len()).collect();
        let vocabulary = self.config().text.vocab_size;
        let mut items: Vec<_> = reads.iter_mut().map(|read| &mut *read.item).collect();
        if let Self::Packed(both) = self {
            let (model, work) = &mut **both;
            let mut items =
                items.into_iter().map(|item| item.packed()).collect::<Result<Vec<_>>>()?;
            return Ok(shares(model.step(work, &mut items, &tokens)?, &rows, vocabulary));
        }
        Ok(shares(&self.step(&mut items, &tokens)?, &rows, vocabulary))
    }

    /// All logits of what the item has read last, where a step did not give them.
    ///
    /// # Errors
    /// It did, or they cannot be copied from the device.
    pub fn logits(&self, item: &Item) -> Result<Vec<f32>> {
        match item {
            Item::Device(item) => item.logits(),
            Item::Candle(_) | Item::Packed(_) => Err(Error::internal("the logits were given")),
        }
    }

    /// Makes the item's row `n` continue its former row `sources[n]`.
    ///
    /// # Errors
    /// A source is not a row, or the copy failed.
    pub fn reorder(&self, item: &mut Item, sources: &[usize]) -> Result<()> {
        match self {
            Self::Candle(model) => model.reorder(item.candle()?, sources),
            Self::Device(_) => item.device()?.reorder(sources),
            Self::Packed(_) => item.packed()?.reorder(sources),
        }
    }

    /// Takes an item that is done; what memory it has may serve the next one.
    pub fn recycle(&mut self, item: Item) {
        if let (Self::Packed(both), Item::Packed(item)) = (self, item) {
            both.1.recycle(item);
        }
    }

    /// Replaces all memory that a pass which was broken off may have left half written.
    pub fn renew(&mut self) {
        match self {
            Self::Candle(_) => {}
            Self::Device(both) => both.1.clear(),
            Self::Packed(both) => both.1 = both.0.workspace(),
        }
    }

    /// Waits until the device has done all that it was told to do; a CPU always has.
    ///
    /// # Errors
    /// Some of it failed.
    pub fn wait(&self) -> Result<()> {
        match self {
            Self::Device(both) => both.0.device().synchronize().map_err(|error| {
                Error::internal("the device failed at its work").with_source(error)
            }),
            Self::Candle(_) | Self::Packed(_) => Ok(()),
        }
    }

    /// What is known of the model.
    #[must_use]
    pub fn describe(&self) -> EngineInfo {
        let config = self.config();
        let gpu = match self {
            Self::Device(both) => GpuInfo::of(both.0.device()),
            Self::Candle(_) | Self::Packed(_) => None,
        };
        let (parameters, precision, kernels, device) = match self {
            Self::Candle(model) => {
                (model.parameters(), model.precision(), "candle", name(model.device()))
            }
            Self::Device(both) => {
                let model = &both.0;
                (model.parameters(), model.precision(), "candle", name(model.device()))
            }
            Self::Packed(both) => {
                let model = &both.0;
                let (precision, kernels) = (model.precision(), model.tier().as_str());
                (model.parameters(), precision, kernels, "cpu".to_owned())
            }
        };
        EngineInfo {
            parameters,
            precision: precision.to_owned(),
            kernels: kernels.to_owned(),
            device,
            gpu,
            image_size: config.vision.image_size,
            patch_size: config.vision.patch_size,
            vocab_size: config.text.vocab_size,
            max_positions: config.text.max_position_embeddings,
            threads: candle_core::utils::get_num_threads(),
            vision_batch: self.vision_batch(config.vision.image_size, config.vision.image_size),
        }
    }
}

fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

fn read_on_device(
    model: &GpuModel,
    state: &mut GpuState,
    reads: &mut [Read<'_>],
) -> Result<Vec<Scores>> {
    let vocabulary = model.config().text.vocab_size;
    let mut on_device = Vec::with_capacity(reads.len());
    for Read { item, tokens, best } in reads {
        on_device.push(GpuRead { item: item.device()?, tokens, best: *best });
    }
    let scores = model.read(state, &mut on_device)?;
    let best = |row: cutline_blip::gpu::BestTokens| {
        let complete = row.tokens.len() == vocabulary;
        TopLogits { tokens: row.tokens, log_sum: row.log_sum, complete }
    };
    let convert = |scores| match scores {
        GpuScores::Logits(logits) => Scores::Logits(logits),
        GpuScores::Best(rows) => Scores::Best(rows.into_iter().map(best).collect()),
        GpuScores::NotFinite => Scores::NotFinite,
    };
    Ok(scores.into_iter().map(convert).collect())
}
