//! The table of `kernels/README.md`: what each source moves, by its own comment, and what ptxas
//! made of it.

use crate::manifest::{Output, Source};
use crate::tree::File;

const BEGIN: &str = "<!-- written by kernelc: -->\n";
const END: &str = "<!-- up to here -->\n";

/// The README with the table of these sources between its two marks.
pub fn with_table(readme: &str, sources: &[(&File, &Source)]) -> Result<String, String> {
    let marked = readme.split_once(BEGIN);
    let marked = marked.and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = marked.ok_or("README.md lacks the two marks around kernelc's table")?;
    let mut table = String::from(
        "| source | traffic | kernels | registers sm80 / sm90a | local memory, bytes |\n\
         |---|---|---|---|---|\n",
    );
    for (file, source) in sources {
        let most = |output: &Output| output.kernels.iter().map(|k| k.registers).max();
        let registers: Vec<String> =
            source.outputs.iter().filter_map(most).map(|r| r.to_string()).collect();
        let kernels = source.outputs.iter().map(|o| o.kernels.len()).max().unwrap_or(0);
        let all = source.outputs.iter().flat_map(|o| &o.kernels);
        let local = all.map(|k| k.stack_bytes + k.spill_bytes).max().unwrap_or(0);
        let local = if local == 0 { "none".to_string() } else { format!("up to {local}") };
        table += &format!(
            "| [`{}`]({}) | {} | {kernels} | {} | {local} |\n",
            file.name,
            file.place,
            traffic(file)?,
            registers.join(" / ")
        );
    }
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

/// The sentence behind `Traffic:` in the comment at the head of a source.
fn traffic(file: &File) -> Result<String, String> {
    let comment = file.text.lines().map_while(|line| line.strip_prefix("//")).map(str::trim);
    let text = comment.collect::<Vec<_>>().join(" ");
    let (_, behind) = text
        .split_once("Traffic: ")
        .ok_or(format!("{}: expected `Traffic:` in the comment at its head", file.place))?;
    let sentence = behind.split_once(". ").map_or(behind, |(first, _)| first);
    Ok(sentence.trim_end_matches('.').replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Kernel;

    fn file(text: &str) -> File {
        File { name: "a.cu".into(), place: "family/a.cu".into(), text: text.into() }
    }

    #[test]
    fn a_row_has_the_first_sentence_and_the_largest_kernel() {
        let file =
            file("// y = x.\n// Traffic: 2·n elements, read\n// once. More.\n#include \"b\"\n");
        let mut source = Source::new(&file);
        for (target, registers) in [("sm80", [7, 40]), ("sm90a", [38, 9])] {
            let kernel = |registers| Kernel { registers, spill_bytes: 8, ..Kernel::default() };
            let kernels = registers.map(kernel).into();
            source.outputs.push(Output {
                target,
                file: String::new(),
                sha256: String::new(),
                kernels,
            });
        }
        let readme = format!("head\n{BEGIN}old\n{END}tail\n");
        let text = with_table(&readme, &[(&file, &source)]).unwrap();
        let row = "| [`a.cu`](family/a.cu) | 2·n elements, read once | 2 | 40 / 38 | up to 8 |";
        assert!(text.contains(row), "{text}");
        assert!(text.starts_with("head\n") && text.ends_with("tail\n") && !text.contains("old"));
    }

    #[test]
    fn a_source_says_what_it_moves() {
        let message = traffic(&file("// y = x.\n")).err().unwrap();
        assert!(message.contains("family/a.cu: expected `Traffic:`"), "{message}");
    }
}
