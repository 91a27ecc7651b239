//! Conversations: which images, which instruction, and which beginning of the answer.

/// A message, as all contracts have it.
#[derive(Debug)]
pub(super) struct Turn<'c> {
    pub(super) role: &'c str,
    pub(super) texts: Vec<&'c str>,
    pub(super) images: Vec<&'c str>,
}

/// What a conversation asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conversation<'c> {
    /// The images of the last message of the user that has any.
    pub(super) images: Vec<&'c str>,
    /// The texts of the system, and of the user since that message.
    pub(super) instruction: String,
    /// The last message if the assistant's: the beginning of the answer.
    pub(super) prefill: Option<&'c str>,
}

impl<'c> Conversation<'c> {
    pub(super) fn of(mut turns: Vec<Turn<'c>>) -> Self {
        let last = turns.iter().rposition(|turn| turn.role == "user" && !turn.images.is_empty());
        let mut instruction = String::new();
        for (at, turn) in turns.iter().enumerate() {
            let counts = match turn.role {
                "system" | "developer" => true,
                "user" => last.is_none_or(|last| at >= last),
                _ => false,
            };
            for text in turn.texts.iter().filter(|_| counts) {
                instruction.push_str(text);
                instruction.push('\n');
            }
        }
        let prefill = turns.last().filter(|turn| turn.role == "assistant");
        let prefill = prefill.and_then(|turn| turn.texts.first().copied());
        let images = last.map_or(Vec::new(), |at| std::mem::take(&mut turns[at].images));
        Self { images, instruction, prefill: prefill.filter(|text| !text.trim().is_empty()) }
    }
}
