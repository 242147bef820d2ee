//! PTX as the library holds it: zlib streams. A text that is another target's but for its `.target` line, as most are,
//! is held once.

use miniz_oxide::deflate::compress_to_vec_zlib;

use crate::manifest::Source;

/// Smallest output; the time is kernelc's, not the library's.
const LEVEL: u8 = 10;

/// What the library holds of one PTX file.
pub struct Image {
    pub target: &'static str,
    /// The target whose stream has the text.
    pub holder: &'static str,
    /// Bytes of the text in the stream.
    pub length: usize,
    /// The stream's file and its bytes, if it is this target's own.
    pub stream: Option<(String, Vec<u8>)>,
}

/// The images of a source, in the order of its outputs.
pub fn pack(source: &Source, texts: &[String]) -> Vec<Image> {
    let pairs: Vec<_> = source.outputs.iter().map(|o| o.target).zip(texts).collect();
    let image = |(i, (target, text)): (usize, &(&'static str, &String))| {
        let same = |(_, other): &&(_, &String)| {
            untargeted(other).is_some_and(|parts| Some(parts) == untargeted(text))
        };
        match pairs[..i].iter().find(same) {
            Some((holder, held)) => Image { target, holder, length: held.len(), stream: None },
            None => {
                let file = format!("{}.{target}.ptx.z", source.stem());
                let stream = Some((file, compress_to_vec_zlib(text.as_bytes(), LEVEL)));
                Image { target, holder: target, length: text.len(), stream }
            }
        }
    };
    pairs.iter().enumerate().map(image).collect()
}

/// What stands before and after the `.target` line.
fn untargeted(text: &str) -> Option<(&str, &str)> {
    let (before, line) = text.split_once("\n.target ")?;
    Some((before, line.split_once('\n')?.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Output;
    use crate::tree::File;

    fn images(texts: [&str; 2]) -> Vec<Image> {
        let (name, place) = ("a.cu".into(), "family/a.cu".into());
        let mut source = Source::new(&File { name, place, text: String::new() });
        for target in ["sm80", "sm90a"] {
            let (file, sha256) = (String::new(), String::new());
            source.outputs.push(Output { target, file, sha256, kernels: Vec::new() });
        }
        pack(&source, &texts.map(String::from))
    }

    #[test]
    fn texts_that_differ_in_their_target_are_held_once() {
        let of = |target: &str, body: &str| format!(".version 8.4\n.target {target}\n{body}\n");
        let (old, new) = (of("sm_80", "add;"), of("sm_90a", "add;"));
        let found = images([&old, &new]);
        let holders: Vec<&str> = found.iter().map(|image| image.holder).collect();
        assert_eq!(holders, ["sm80", "sm80"]);
        assert_eq!(found[1].length, old.len(), "the length is the stream's");
        assert!(found[1].stream.is_none());
        let (file, bytes) = found[0].stream.as_ref().unwrap();
        assert_eq!(file, "a.sm80.ptx.z");
        let text = miniz_oxide::inflate::decompress_to_vec_zlib(bytes).unwrap();
        assert_eq!(text, old.as_bytes());

        let found = images([&old, &of("sm_90a", "sub;")]);
        assert_eq!(found[1].holder, "sm90a");
        assert_eq!(found[1].stream.as_ref().unwrap().0, "a.sm90a.ptx.z");
        // A text without the line is on its own.
        assert_eq!(images(["a", "a"]).iter().filter(|image| image.stream.is_some()).count(), 2);
    }
}
