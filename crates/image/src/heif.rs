//! The boxes of an AVIF: which bytes hold the pixels, and what is to be done with them.
//!
//! ISO/IEC 14496-12 defines the boxes, ISO/IEC 23008-12 the items and their properties. Nothing here
//! is larger than the file, and no box is read through a recursion: every box that matters has a known
//! depth.

use super::boxes::{self, Coding, Fault, Grid, Location, MAX_ENTRIES, Numbers, Result, boxes};
use super::units::Units;

/// The most tiles of a grid. Cameras and encoders write up to a few dozen.
const MAX_TILES: usize = 256;

/// What the boxes say of the size of the image, and the headers in the coded data.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outline {
    /// Pixels a row, before the image is cropped and turned.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The most that the coded data of an image or tile takes.
    pub units: Units,
    /// Whether it is put together from tiles.
    pub is_grid: bool,
    pub has_alpha: bool,
    /// Quarter turns to the left.
    pub turns: u8,
}

/// What the boxes say of the image to show.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Image<'f> {
    pub outline: Outline,
    /// The coded samples.
    pub color: Coded<'f>,
    /// The coded opacity, if there is one.
    pub alpha: Option<Coded<'f>>,
    /// Whether the colours were multiplied by the opacity.
    pub premultiplied: bool,
    /// The ICC profile.
    pub profile: Option<&'f [u8]>,
    /// How samples become colours, if the boxes say so.
    pub coding: Option<Coding>,
    /// The part to show: left, top, width, height.
    pub crop: Option<[u32; 4]>,
    /// Whether the turned image is mirrored, and how.
    pub mirror: Option<Mirror>,
}

/// Coded samples: one image, or tiles of a grid.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Coded<'f> {
    /// Tiles a row.
    pub columns: usize,
    /// The parts of each tile's AV1 data, row after row. They are joined when the tile is decoded: many
    /// tiles may have the same parts, so that all together are longer than the file.
    pub tiles: Vec<Vec<&'f [u8]>>,
}

/// How a mirrored image is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirror {
    /// Top and bottom change places.
    Vertical,
    /// Left and right change places.
    Horizontal,
}

/// Whether `bytes` are an AVIF: a file whose brands name AV1.
pub(super) fn is_avif(bytes: &[u8]) -> bool {
    brands(bytes).any(|brand| matches!(brand, b"avif" | b"avis"))
}

/// Whether `bytes` are a HEIC: a file whose brands name HEVC.
pub(super) fn is_heic(bytes: &[u8]) -> bool {
    brands(bytes).any(|brand| {
        matches!(
            brand,
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs"
        )
    })
}

/// The major brand of a file, and all with which it is compatible. The first box may be cut off.
fn brands(bytes: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    let is_file_type = bytes.get(4..8) == Some(b"ftyp");
    let length = bytes.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let brands = if is_file_type { &bytes[8..length.clamp(8, bytes.len())] } else { &[] };
    // The second is the version of the major brand.
    let brands = brands.as_chunks::<4>().0.iter().enumerate();
    brands.filter(|(index, _)| *index != 1).map(|(_, brand)| brand)
}

/// Reads the boxes of an AVIF.
pub(super) fn read(file: &[u8]) -> Result<Image<'_>> {
    meta(file)?.image()
}

/// Reads the size of an AVIF, but not its data.
pub(super) fn outline(file: &[u8]) -> Result<Outline> {
    meta(file)?.outline()
}

fn meta(file: &[u8]) -> Result<Meta<'_>> {
    let meta = boxes(file).find(|(name, _)| *name == b"meta").map(|(_, content)| content);
    // An animation without a still image has none.
    let Some(meta) = meta else {
        return Err(Fault::Unsupported("an AVIF animation without a still image"));
    };
    Meta::read(file, meta)
}

/// The parts of the `meta` box that matter.
struct Meta<'f> {
    file: &'f [u8],
    primary: u32,
    /// Identifier and type of each item.
    items: Vec<(u32, [u8; 4])>,
    locations: Vec<Location>,
    /// Type, from and to of each reference.
    references: Vec<([u8; 4], u32, u32)>,
    properties: Vec<(&'f [u8; 4], &'f [u8])>,
    /// Item, and index of the property from 1.
    associations: Vec<(u32, usize)>,
    data: &'f [u8],
}

impl<'f> Meta<'f> {
    fn read(file: &'f [u8], content: &'f [u8]) -> Result<Self> {
        let mut meta = Self {
            file,
            primary: 0,
            items: Vec::new(),
            locations: Vec::new(),
            references: Vec::new(),
            properties: Vec::new(),
            associations: Vec::new(),
            data: &[],
        };
        // The version and flags of the box.
        let mut numbers = Numbers(content);
        numbers.version()?;
        for (name, content) in boxes(numbers.0) {
            let content = Numbers(content);
            match name {
                b"pitm" => meta.primary = boxes::primary(content)?,
                b"iinf" => meta.items = boxes::items(content)?,
                b"iloc" => meta.locations = boxes::locations(content)?,
                b"iref" => meta.references = boxes::references(content)?,
                b"iprp" => meta.read_properties(content.0)?,
                b"idat" => meta.data = content.0,
                _ => {}
            }
        }
        Ok(meta)
    }

    fn read_properties(&mut self, content: &'f [u8]) -> Result<()> {
        for (name, content) in boxes(content) {
            match name {
                b"ipco" => self.properties = boxes(content).take(MAX_ENTRIES).collect(),
                b"ipma" => boxes::associations(Numbers(content), &mut self.associations)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn outline(&self) -> Result<Outline> {
        let (width, height) = self.size(self.primary).ok_or(Fault::Damaged)?;
        let alpha = self.alpha();
        let mut units = Units::default();
        for item in [Some(self.primary), alpha].into_iter().flatten() {
            for coded in self.parts(item).take(MAX_TILES).chain([item]) {
                if self.kind(coded) == Some(*b"av01") {
                    units = units.with(&self.units(coded)?);
                }
            }
        }
        let turns = self.properties_of(self.primary).find(|(name, _)| *name == b"irot");
        Ok(Outline {
            width,
            height,
            units,
            is_grid: self.kind(self.primary) == Some(*b"grid"),
            has_alpha: alpha.is_some(),
            turns: turns.and_then(|(_, content)| content.first()).map_or(0, |turns| turns & 3),
        })
    }

    /// What an item of coded data takes. Data in several parts is not joined for this.
    fn units(&self, item: u32) -> Result<Units> {
        match self.data(item)?[..] {
            [only] => Units::read(only),
            _ => Ok(Units::MOST),
        }
    }

    fn image(&self) -> Result<Image<'f>> {
        let primary = self.primary;
        let outline = self.outline()?;
        let Outline { width, height, .. } = outline;
        let alpha = self.alpha();
        let mut image = Image {
            outline,
            color: self.coded(primary, width, height)?,
            alpha: alpha.map(|item| self.coded(item, width, height)).transpose()?,
            premultiplied: alpha.is_some_and(|item| self.refers(*b"prem", primary, item)),
            ..Image::default()
        };
        for (name, content) in self.properties_of(primary) {
            let mut content = Numbers(content);
            match name {
                b"colr" => match content.bytes(4)? {
                    b"nclx" => image.coding = image.coding.or(Some(boxes::coding(content)?)),
                    b"prof" | b"rICC" => image.profile = image.profile.or(Some(content.0)),
                    _ => {}
                },
                b"clap" => image.crop = Some(boxes::crop(content, width, height)?),
                b"imir" => {
                    let left_right = content.byte()? & 1 == 1;
                    image.mirror =
                        Some(if left_right { Mirror::Horizontal } else { Mirror::Vertical });
                }
                _ => {}
            }
        }
        Ok(image)
    }

    /// The item that holds the opacity of the primary item.
    fn alpha(&self) -> Option<u32> {
        let is_alpha = |item: u32| {
            self.properties_of(item).any(|(name, content)| {
                let urn = content.get(4..).unwrap_or_default();
                let urn = urn.split(|byte| *byte == 0).next().unwrap_or_default();
                name == b"auxC"
                    && (urn == b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
                        || urn == b"urn:mpeg:hevc:2015:auxid:1")
            })
        };
        let auxiliary =
            self.references.iter().filter(|(kind, _, to)| kind == b"auxl" && *to == self.primary);
        auxiliary.map(|(_, from, _)| *from).find(|item| is_alpha(*item))
    }

    /// The type of an item.
    fn kind(&self, item: u32) -> Option<[u8; 4]> {
        self.items.iter().find(|(of, _)| *of == item).map(|(_, kind)| *kind)
    }

    /// The items that an item is derived from.
    fn parts(&self, item: u32) -> impl Iterator<Item = u32> {
        let mine =
            self.references.iter().filter(move |(kind, from, _)| kind == b"dimg" && *from == item);
        mine.map(|(_, _, to)| *to)
    }

    fn refers(&self, kind: [u8; 4], from: u32, to: u32) -> bool {
        self.references.contains(&(kind, from, to))
    }

    fn properties_of(&self, item: u32) -> impl Iterator<Item = (&'f [u8; 4], &'f [u8])> {
        let mine = self.associations.iter().filter(move |(of, _)| *of == item);
        mine.filter_map(|(_, index)| self.properties.get(index.checked_sub(1)?).copied())
    }

    /// Width and height.
    fn size(&self, item: u32) -> Option<(u32, u32)> {
        let (_, content) = self.properties_of(item).find(|(name, _)| *name == b"ispe")?;
        let mut content = Numbers(content.get(4..)?);
        Some((content.long().ok()?, content.long().ok()?))
    }

    /// The coded samples of an item, which has to be of this size.
    fn coded(&self, item: u32, width: u32, height: u32) -> Result<Coded<'f>> {
        match &self.kind(item).ok_or(Fault::Damaged)? {
            b"av01" => Ok(Coded { columns: 1, tiles: vec![self.data(item)?] }),
            b"grid" => {
                let bytes = self.data(item)?.concat();
                let grid = Grid::read(Numbers(&bytes))?;
                if (grid.width, grid.height) != (width, height) {
                    return Err(Fault::Damaged);
                }
                self.tiles(item, &grid)
            }
            b"hvc1" => Err(Fault::Unsupported("a HEIC image")),
            _ => Err(Fault::Unsupported("an AVIF that is composed of other images")),
        }
    }

    fn tiles(&self, item: u32, grid: &Grid) -> Result<Coded<'f>> {
        let parts: Vec<u32> = self.parts(item).take(MAX_TILES + 1).collect();
        if parts.len() > MAX_TILES {
            return Err(Fault::Unsupported("an AVIF of more than 256 tiles"));
        }
        if parts.len() != grid.columns * grid.rows {
            return Err(Fault::Damaged);
        }
        if parts.iter().any(|part| self.kind(*part) != Some(*b"av01")) {
            return Err(Fault::Unsupported("an AVIF grid of other images"));
        }
        let tiles = parts.iter().map(|part| self.data(*part)).collect::<Result<_>>()?;
        Ok(Coded { columns: grid.columns, tiles })
    }

    /// The bytes of an item, in one or more parts. Parts may overlap, but together they are never longer
    /// than the file.
    fn data(&self, item: u32) -> Result<Vec<&'f [u8]>> {
        let location = self.locations.iter().find(|location| location.item == item);
        let location = location.ok_or(Fault::Damaged)?;
        let source = if location.in_data { self.data } else { self.file };
        let part = |(offset, length): (u64, u64)| {
            let rest = source.get(usize::try_from(offset).ok()?..)?;
            if length == 0 { Some(rest) } else { rest.get(..usize::try_from(length).ok()?) }
        };
        let parts: Option<Vec<&[u8]>> =
            location.extents.iter().map(|extent| part(*extent)).collect();
        let parts = parts.ok_or(Fault::Damaged)?;
        let total = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        if parts.is_empty() || total > self.file.len() { Err(Fault::Damaged) } else { Ok(parts) }
    }
}
