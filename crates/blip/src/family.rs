//! Which models there are, what each can do, and which of them a checkpoint is.

use cutline_error::{Error, ErrorKind, Result};

/// A model of the BLIP family. A checkpoint says which one it is; nothing is concluded from its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Writes captions.
    Captioning,
    /// Compares images with texts.
    Retrieval,
    /// Answers questions about images.
    QuestionAnswering,
    /// Writes captions, and answers questions, with a large language model.
    Blip2,
}

/// Something that a model can do with images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ability {
    /// Describe an image in a sentence.
    Caption,
    /// Say how well texts match an image.
    Score,
    /// Give vectors for images and texts, to compare them with each other.
    Embed,
    /// Answer questions about an image.
    Answer,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Captioning, Self::Retrieval, Self::QuestionAnswering, Self::Blip2];

    /// The name in the `architectures` of `config.json`: the class in transformers.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Captioning => "BlipForConditionalGeneration",
            Self::Retrieval => "BlipForImageTextRetrieval",
            Self::QuestionAnswering => "BlipForQuestionAnswering",
            Self::Blip2 => "Blip2ForConditionalGeneration",
        }
    }

    /// The `model_type` of `config.json`.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Captioning | Self::Retrieval | Self::QuestionAnswering => "blip",
            Self::Blip2 => "blip-2",
        }
    }

    /// A checkpoint on the hub.
    pub(crate) const fn checkpoint(self) -> &'static str {
        match self {
            Self::Captioning => "Salesforce/blip-image-captioning-base",
            Self::Retrieval => "Salesforce/blip-itm-base-coco",
            Self::QuestionAnswering => "Salesforce/blip-vqa-base",
            Self::Blip2 => "Salesforce/blip2-opt-2.7b",
        }
    }

    /// What must be known about the rights to the weights, and is not in the licence of the checkpoint.
    #[must_use]
    pub const fn terms(self) -> Option<&'static str> {
        match self {
            Self::Captioning | Self::Retrieval | Self::QuestionAnswering => None,
            Self::Blip2 => Some(
                "the weights of its language model, OPT, are under Meta's licence, for research only",
            ),
        }
    }

    /// What the model can do.
    #[must_use]
    pub const fn abilities(self) -> &'static [Ability] {
        match self {
            Self::Captioning => &[Ability::Caption],
            Self::Retrieval => &[Ability::Score, Ability::Embed],
            Self::QuestionAnswering => &[Ability::Answer],
            Self::Blip2 => &[Ability::Caption, Ability::Answer],
        }
    }

    /// Whether the model has BLIP's text decoder.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Captioning | Self::QuestionAnswering)
    }

    /// Whether the model has BLIP's text encoder.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Retrieval | Self::QuestionAnswering)
    }

    /// What a question becomes before a model without a text encoder continues it; `None` if the model has
    /// one, or answers no questions.
    #[must_use]
    pub fn framed(self, question: &str) -> Option<String> {
        (self == Self::Blip2).then(|| format!("Question: {question} Answer:"))
    }

    /// Whether candle can run the model: on a GPU, or from block formats of fewer than 8 bits.
    #[must_use]
    pub const fn runs_on_candle(self) -> bool {
        matches!(self, Self::Captioning)
    }

    /// Checks that the model can do this.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported), with a checkpoint that can.
    pub fn check(self, ability: Ability) -> Result<()> {
        if self.abilities().contains(&ability) {
            return Ok(());
        }
        let own: Vec<&str> = self.abilities().iter().map(|ability| ability.phrase()).collect();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the loaded model cannot {}; it can {}; load a checkpoint such as {}",
                ability.phrase(),
                own.join(" and "),
                ability.checkpoint()
            ),
        ))
    }

    /// The family that `config.json` names.
    pub(crate) fn named(
        model_type: Option<&str>,
        architectures: Option<&[String]>,
    ) -> Result<Self> {
        let known = Self::ALL.map(Self::architecture).join(", ");
        if !Self::ALL.iter().any(|family| Some(family.model_type()) == model_type) {
            return Err(Error::model(format!(
                "config.json says model_type {:?}, but only \"blip\" and \"blip-2\" are supported; \
                 choose a checkpoint of one of {known}, such as {}",
                model_type.unwrap_or("<missing>"),
                Self::Captioning.checkpoint()
            )));
        }
        let Some(first) = architectures.and_then(<[String]>::first) else {
            return Err(Error::model(format!(
                "config.json names no architectures, so it is not known what the model can do; add \
                 \"architectures\" with one of {known}"
            )));
        };
        let named = |family: &Self| {
            family.architecture() == first && Some(family.model_type()) == model_type
        };
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            Error::model(format!(
                "config.json says model_type {model_type:?} and architectures {first:?}, which is not \
                 supported; choose a checkpoint of one of {known}",
                model_type = model_type.unwrap_or_default()
            ))
        })
    }
}

impl Ability {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Caption, Self::Score, Self::Embed, Self::Answer];

    /// Its name in answers of the server.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Score => "score",
            Self::Embed => "embed",
            Self::Answer => "answer",
        }
    }

    const fn phrase(self) -> &'static str {
        match self {
            Self::Caption => "write captions",
            Self::Score => "say how well texts match an image",
            Self::Embed => "embed images and texts",
            Self::Answer => "answer questions",
        }
    }

    /// A checkpoint on the hub that can do it.
    const fn checkpoint(self) -> &'static str {
        match self {
            Self::Caption => Family::Captioning.checkpoint(),
            Self::Score | Self::Embed => Family::Retrieval.checkpoint(),
            Self::Answer => Family::QuestionAnswering.checkpoint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ability_is_had_by_some_model_and_refused_by_another() {
        for ability in Ability::ALL {
            let able = Family::ALL.into_iter().filter(|family| family.check(ability).is_ok());
            assert!((1..Family::ALL.len()).contains(&able.count()), "{ability:?}");
        }
        let error = Family::Retrieval.check(Ability::Answer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for part in ["answer questions", "embed images", "Salesforce/blip-vqa-base"] {
            assert!(error.detail().contains(part), "{error}");
        }
    }
}
