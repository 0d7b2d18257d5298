//! Circles of imports between the files of one crate.
//!
//! In a crate without circles every file can be read after the files that it uses. A module and the
//! modules inside it may use each other; any other circle is a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::tokens::{Token, tokens};

/// A module's path below its crate; empty for `lib.rs`.
type Module = Vec<String>;
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// A line for each circle in one of these crates, which are named by their folders.
pub fn findings<'a>(crates: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in crates {
        let folder = crate::shell::root().join("crates").join(name).join("src");
        let mut files = BTreeMap::new();
        for file in super::source::rust_files(&folder)? {
            files.insert(module_of(&folder, &file), fs::read_to_string(&file)?);
        }

        for circle in circles(&imports(&files)) {
            let names: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            found.push(format!(
                "files of {name} import each other in a circle: {}",
                names.join(", ")
            ));
        }
    }

    Ok(found)
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module_of(folder: &Path, file: &Path) -> Module {
    let below = file.strip_prefix(folder).unwrap_or(file).with_extension("");
    let mut module: Module = below
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();

    if matches!(
        module.last().map(String::as_str),
        Some("lib" | "main" | "mod")
    ) {
        module.pop();
    }

    module
}

/// Which file names which other file. Code that is compiled for tests only does not count.
fn imports(files: &BTreeMap<Module, String>) -> Imports {
    let mut sources = BTreeMap::new();
    let mut tests = BTreeSet::new();
    for (module, text) in files {
        let (code, test_modules) = without_tests(tokens(text));
        tests.extend(test_modules.into_iter().map(|name| join(module, &[name])));
        sources.insert(module, code);
    }

    let is_test = |module: &Module| (1..=module.len()).any(|end| tests.contains(&module[..end]));
    let mut imports = Imports::new();
    for (module, code) in sources {
        if is_test(module) {
            continue;
        }

        let named = paths(&code, module, files);
        let named = named.into_iter().filter_map(|path| file_of(path, files));
        let others = named.filter(|other| other != module).collect();
        imports.insert(module.clone(), others);
    }

    imports
}

fn join(module: &[String], rest: &[String]) -> Module {
    [module, rest].concat()
}

/// The file that holds what a path names: the longest beginning of the path that is a module.
fn file_of(mut path: Module, files: &BTreeMap<Module, String>) -> Option<Module> {
    while !files.contains_key(&path) {
        path.pop()?;
    }

    Some(path)
}

/// Leaves out `#[cfg(test)] mod name { ... }`, and names the modules of `#[cfg(test)] mod name;`.
fn without_tests(code: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let attribute = tokens("#[cfg(test)] mod");
    let (mut rest, mut names) = (Vec::new(), Vec::new());
    let mut at = 0;

    while at < code.len() {
        if !code[at..].starts_with(&attribute) {
            rest.push(code[at].clone());
            at += 1;
            continue;
        }

        at += attribute.len();
        if let (Some(Token::Word(name)), Some(Token::Mark(';'))) = (code.get(at), code.get(at + 1))
        {
            names.push(name.clone());
            at += 2;
            continue;
        }

        let mut depth = 0;
        while let Some(token) = code.get(at) {
            at += 1;
            match token {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') if depth == 1 => break,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
        }
    }

    (rest, names)
}

/// Every path of the crate that a file names, in `use` and elsewhere. A path may begin with a name
/// that `use` brought in, or with a module inside the file's own.
fn paths(code: &[Token], module: &Module, files: &BTreeMap<Module, String>) -> Vec<Module> {
    let mut all = Vec::new();
    let mut brought_in: BTreeMap<String, Module> = BTreeMap::new();
    let mut inline = Vec::new();
    let mut at = 0;

    while at < code.len() {
        if code[at] == Token::Word("use".to_owned()) {
            at += 1;
            let mut tree = Vec::new();
            use_tree(code, &mut at, &[], &mut tree);
            for (name, path) in tree {
                if let Some(path) = absolute(&path, module) {
                    brought_in.insert(name, path.clone());
                    all.push(path);
                }
            }
        } else if let Some((path, next)) = path_at(code, at) {
            inline.push(path);
            at = next;
        } else {
            at += 1;
        }
    }

    for path in inline.into_iter().filter(|path| path.len() > 1) {
        let (first, rest) = (&path[0], &path[1..]);
        let inside = join(module, std::slice::from_ref(first));
        if let Some(path) = absolute(&path, module) {
            all.push(path);
        } else if let Some(begin) = brought_in.get(first) {
            all.push(join(begin, rest));
        } else if files.contains_key(&inside) {
            all.push(join(&inside, rest));
        }
    }

    all
}

/// A path that begins with `crate`, `self` or `super`, from the crate's root.
fn absolute(path: &[String], module: &Module) -> Option<Module> {
    let (first, mut rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => Module::new(),
        "self" => module.clone(),
        "super" => {
            let mut base = module.clone();
            base.pop();
            base
        }
        _ => return None,
    };

    while let Some(("super", next)) = rest.split_first().map(|(word, next)| (word.as_str(), next)) {
        base.pop();
        rest = next;
    }

    Some(join(&base, rest))
}

/// `a::b::c` from `at`, and where it ends.
fn path_at(code: &[Token], mut at: usize) -> Option<(Module, usize)> {
    let mut path = Module::new();
    loop {
        let Token::Word(word) = code.get(at)? else {
            return None;
        };
        path.push(word.clone());
        at += 1;
        match (code.get(at), code.get(at + 1)) {
            (Some(Token::PathSeparator), Some(Token::Word(_))) => at += 1,
            _ => return Some((path, at)),
        }
    }
}

/// What a tree of `use` brings in: the name, and the path behind it. `at` moves past the tree.
fn use_tree(code: &[Token], at: &mut usize, begin: &[String], out: &mut Vec<(String, Module)>) {
    let mut path = begin.to_vec();
    let mut alias = None;

    while let Some(token) = code.get(*at) {
        match token {
            Token::Word(word) if word == "as" => {
                if let Some(Token::Word(word)) = code.get(*at + 1) {
                    alias = Some(word.clone());
                }
                *at += 2;
            }
            Token::Word(word) => {
                // `a::{self}` brings in `a`.
                if word != "self" || path.is_empty() {
                    path.push(word.clone());
                }
                *at += 1;
            }
            Token::PathSeparator | Token::Mark('*') => *at += 1,
            Token::Mark('{') => {
                *at += 1;
                while !matches!(code.get(*at), None | Some(Token::Mark('}'))) {
                    use_tree(code, at, &path, out);
                    if code.get(*at) != Some(&Token::Mark('}')) {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            Token::Mark(_) => break,
        }
    }

    if let Some(name) = alias.or_else(|| path.last().cloned()) {
        out.push((name, path));
    }
}

/// The circles that stay when a module may use the modules inside it and they may use it.
fn circles(imports: &Imports) -> Vec<BTreeSet<Module>> {
    let mut found = Vec::new();
    let mut open = vec![imports.keys().cloned().collect::<BTreeSet<_>>()];

    while let Some(modules) = open.pop() {
        for circle in strongly_connected(imports, &modules) {
            let top = circle
                .iter()
                .find(|top| circle.iter().all(|module| module.starts_with(top)));
            match top.cloned() {
                None => found.push(circle),
                // What is left without the common parent must be in order by itself.
                Some(top) => {
                    let mut rest = circle;
                    rest.remove(&top);
                    open.push(rest);
                }
            }
        }
    }

    found
}

/// Groups of two and more modules that all reach each other within `modules`.
fn strongly_connected(imports: &Imports, modules: &BTreeSet<Module>) -> Vec<BTreeSet<Module>> {
    let reached: BTreeMap<_, _> = modules
        .iter()
        .map(|module| (module, reach(imports, modules, module)))
        .collect();

    let mut groups = BTreeSet::new();
    for (module, there) in &reached {
        let mut group: BTreeSet<Module> = there
            .iter()
            .filter(|other| reached[*other].contains(*module))
            .cloned()
            .collect();
        group.insert((*module).clone());
        if group.len() > 1 {
            groups.insert(group);
        }
    }

    groups.into_iter().collect()
}

fn reach(imports: &Imports, within: &BTreeSet<Module>, from: &Module) -> BTreeSet<Module> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for next in imports.get(module).into_iter().flatten() {
            if within.contains(next) && seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }

    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files
            .iter()
            .map(|(module, text)| {
                let module = module.split("::").filter(|part| !part.is_empty());
                (module.map(str::to_owned).collect(), (*text).to_owned())
            })
            .collect();

        let circles = circles(&imports(&files));
        let name = |circle: &BTreeSet<Module>| {
            let names: Vec<_> = circle.iter().map(|module| module.join("::")).collect();
            names.join(" ")
        };

        circles.iter().map(name).collect()
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let a = ("a", "use crate::b::B;");
        assert_eq!(found(&[a, ("b", "pub struct B;")]), [""; 0]);
        assert_eq!(found(&[a, ("b", "fn f() { crate::a::g() }")]), ["a b"]);
        assert_eq!(
            found(&[
                a,
                ("b", "use crate::{c, d};"),
                ("c", ""),
                ("d", "use super::a;")
            ]),
            ["a b d"]
        );
    }

    #[test]
    fn paths_begin_with_names_that_were_brought_in_or_with_own_modules() {
        let below = ("b::c", "use crate::a::A;");
        assert_eq!(
            found(&[
                ("a", "use crate::b; fn f() { b::c::g() }"),
                ("b", ""),
                below
            ]),
            ["a b::c"]
        );
        assert_eq!(
            found(&[
                (
                    "a",
                    "use crate::b::{self as other}; fn f() { other::c::g() }"
                ),
                ("b", ""),
                below
            ]),
            ["a b::c"]
        );
        assert_eq!(
            found(&[
                ("b", "mod c; fn f() { c::g() }"),
                below,
                ("a", "use crate::b::{self}; ")
            ]),
            ["a b b::c"]
        );
    }

    #[test]
    fn a_module_and_those_inside_it_may_use_each_other() {
        let parent = ("a", "mod b; mod c; use b::B; fn f() { c::g() }");
        let files = [
            ("", "mod a;"),
            parent,
            ("a::b", "use super::A;"),
            ("a::c", ""),
        ];
        assert_eq!(found(&files), [""; 0]);

        let siblings = [
            parent,
            ("a::b", "use super::{A, c};"),
            ("a::c", "use super::b;"),
        ];
        assert_eq!(found(&siblings), ["a::b a::c"]);
    }

    #[test]
    fn comments_strings_and_tests_are_no_imports() {
        let b = ("b", "use crate::a::A;");
        let comment = "// use crate::b;\n/* crate::b /* nested */ crate::b */ const A: &str = \"crate::b::B\";";
        assert_eq!(found(&[("a", comment), b]), [""; 0]);
        let raw = "const A: &str = r#\"\" crate::b::B\"#; const C: char = '\"'; fn f<'a>() {}";
        assert_eq!(found(&[("a", raw), b]), [""; 0]);

        let test = "#[cfg(test)] mod tests { use crate::b::B; fn f() {} }";
        assert_eq!(found(&[("a", test), b]), [""; 0]);
        let after = format!("{test} use crate::b::B;");
        assert_eq!(found(&[("a", &after), b]), ["a b"]);
        let own_file = [
            ("a", "#[cfg(test)] mod laws;"),
            ("a::laws", "use crate::b;"),
            b,
        ];
        assert_eq!(found(&own_file), [""; 0]);
    }
}
