//! The two ways to run BLIP, behind one face: on candle (the reference, GPUs, GGUF's block formats)
//! and on the CPU's own kernels.

use candle_core::{DType, DeviceLocation, Tensor};

use crate::blip::packed::{PackedImage, PackedItem, PackedModel, Workspace};
use crate::blip::{BlipConfig, BlipModel, ItemState};
use crate::engine::{EngineInfo, GpuInfo};
use crate::error::{Error, Result};

/// A loaded model, ready to run.
#[derive(Debug)]
pub enum Backend {
    /// On candle.
    Candle(Box<BlipModel>),
    /// On the kernels, with the memory that a pass needs.
    Packed(Box<(PackedModel, Workspace)>),
}

/// An encoded image, for the backend that made it.
#[derive(Debug)]
pub enum Encoded {
    /// On candle's device, `[tokens, width]`.
    Candle(Tensor),
    /// In plain memory.
    Packed(PackedImage),
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
    /// On the kernels.
    Packed(PackedItem),
}

impl From<BlipModel> for Backend {
    fn from(model: BlipModel) -> Self {
        Self::Candle(Box::new(model))
    }
}

impl From<PackedModel> for Backend {
    fn from(model: PackedModel) -> Self {
        let work = model.workspace();
        Self::Packed(Box::new((model, work)))
    }
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
            Self::Packed(item) => item.rows(),
        }
    }

    fn candle(&mut self) -> Result<&mut ItemState> {
        match self {
            Self::Candle(item) => Ok(item),
            Self::Packed(_) => Err(mixed()),
        }
    }

    fn packed(&mut self) -> Result<&mut PackedItem> {
        match self {
            Self::Packed(item) => Ok(item),
            Self::Candle(_) => Err(mixed()),
        }
    }
}

impl Backend {
    /// Shapes and constants.
    #[must_use]
    pub fn config(&self) -> &BlipConfig {
        match self {
            Self::Candle(model) => model.config(),
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
            Self::Packed(both) => {
                let (model, work) = &mut **both;
                model.encode(work, pixels, width, height).map(Encoded::Packed)
            }
        }
    }

    /// The state for one image's caption: one row, and room for `capacity` tokens.
    ///
    /// # Errors
    /// The image is another backend's, or the arithmetic failed.
    pub fn begin(&mut self, image: &Encoded, capacity: usize) -> Result<Item> {
        match (self, image) {
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

    /// Reads the first tokens (decoder start and prompt) of a new item; the logits of the last.
    ///
    /// # Errors
    /// The tokens do not fit the item or the vocabulary, or the arithmetic failed.
    pub fn prefill(&mut self, item: &mut Item, tokens: &[u32]) -> Result<Vec<f32>> {
        match self {
            Self::Candle(model) => model.prefill(item.candle()?, tokens),
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
            Self::Packed(both) => {
                let (model, work) = &mut **both;
                let mut items: Vec<_> =
                    items.iter_mut().map(|item| item.packed()).collect::<Result<_>>()?;
                model.step(work, &mut items, tokens).map(<[f32]>::to_vec)
            }
        }
    }

    /// Makes the item's row `n` continue its former row `sources[n]`.
    ///
    /// # Errors
    /// A source is not a row, or the copy failed.
    pub fn reorder(&self, item: &mut Item, sources: &[usize]) -> Result<()> {
        match self {
            Self::Candle(model) => model.reorder(item.candle()?, sources),
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
        if let Self::Packed(both) = self {
            both.1 = both.0.workspace();
        }
    }

    /// Waits until the device has done all that it was told to do; a CPU always has.
    ///
    /// # Errors
    /// Some of it failed.
    pub fn wait(&self) -> Result<()> {
        match self {
            Self::Candle(model) => model.device().synchronize().map_err(|error| {
                Error::internal("the device failed at its work").with_source(error)
            }),
            Self::Packed(_) => Ok(()),
        }
    }

    /// What is known of the model.
    #[must_use]
    pub fn describe(&self) -> EngineInfo {
        let config = self.config();
        let gpu = match self {
            Self::Candle(model) => GpuInfo::of(model.device()),
            Self::Packed(_) => None,
        };
        let (parameters, precision, kernels, device) = match self {
            Self::Candle(model) => {
                let device = match model.device().location() {
                    DeviceLocation::Cpu => "cpu".to_owned(),
                    DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                    DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
                };
                (model.parameters(), model.precision(), "candle", device)
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
        }
    }
}
