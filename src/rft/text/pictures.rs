//! The vocabulary of a model that also reads pictures, of which only the language part is run.

use std::sync::Arc;

use crate::text::Codec;
use gradus::error::{Error, Result};

/// A vocabulary that refuses texts with a picture in them: without its pixels the id that stands for it
/// would be computed like a word.
pub(crate) struct WithoutPictures {
    pub codec: Arc<dyn Codec>,
    /// Ids that stand for pictures and films.
    pub pictures: Vec<i32>,
}

impl WithoutPictures {
    fn checked(&self, ids: Vec<i32>) -> Result<Vec<i32>> {
        self.check_ids(&ids).map(|()| ids)
    }
}

impl Codec for WithoutPictures {
    fn len(&self) -> usize {
        self.codec.len()
    }

    fn check_ids(&self, ids: &[i32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| self.pictures.contains(id)) else { return Ok(()) };
        let got = format!("a picture or a film ({})", self.codec.decode_spelled(&[*id])?);
        let expected = "text alone: of this model only the language part is run";
        Err(Error::invalid("encode", "text", got, expected))
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        self.checked(self.codec.encode(text)?)
    }

    fn encode_rendered(&self, text: &str) -> Result<Vec<i32>> {
        self.checked(self.codec.encode_rendered(text)?)
    }

    fn decode(&self, ids: &[i32]) -> Result<String> {
        self.codec.decode(ids)
    }

    fn decode_spelled(&self, ids: &[i32]) -> Result<String> {
        self.codec.decode_spelled(ids)
    }

    fn spell(&self, id: i32) -> Result<String> {
        self.codec.spell(id)
    }

    fn stops(&self) -> &[i32] {
        self.codec.stops()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Bytes;

    #[test]
    fn a_picture_in_a_text_is_refused() {
        let codec = Arc::new(Bytes::new(&[]));
        let codec = WithoutPictures { codec, pictures: vec![b'#' as i32] };
        assert_eq!(codec.encode("words").unwrap(), b"words".map(i32::from));
        for error in [codec.encode("a #").unwrap_err(), codec.encode_rendered("#").unwrap_err()] {
            let shown = error.to_string();
            assert!(shown.contains("a picture or a film (#)"), "{shown}");
        }
        assert!(codec.check_ids(&[65, 66]).is_ok() && codec.check_ids(&[65, b'#' as i32]).is_err());
        assert_eq!(codec.decode(&[b'#' as i32]).unwrap(), "#");
    }
}
