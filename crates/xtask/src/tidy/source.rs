//! The files of a crate, parsed, with the parts that only tests compile told apart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::visit_mut::{self, VisitMut};

use super::workspace::Member;

/// One file below a crate's `src`.
pub struct Source {
    /// The crate's name without the prefix `meltemi-`.
    pub name: String,
    pub path: PathBuf,
    /// The path below the root of the workspace.
    pub shown: String,
    pub text: String,
    pub whole: syn::File,
    /// `whole` without the items that only tests compile; empty for a module of tests.
    pub shipped: syn::File,
}

impl Source {
    /// All files below `src`, in the order of their paths.
    pub fn read_crate(member: &Member) -> Result<Vec<Self>> {
        let files = rust_files(&member.folder.join("src"))?;
        let mut sources = Vec::new();
        for path in files {
            sources.push(Self::read(&member.name, path)?);
        }

        let tests: Vec<PathBuf> = sources
            .iter()
            .flat_map(|source| test_modules(&source.path, &source.whole.items))
            .collect();
        for source in &mut sources {
            if tests.iter().any(|module| is_within(&source.path, module)) {
                source.shipped.items.clear();
            }
        }

        Ok(sources)
    }

    fn read(name: &str, path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path)?;
        let shown = path.strip_prefix(crate::shell::root()).unwrap_or(&path);
        let shown = shown.display().to_string();
        let mut source = Self::parse(name, &text).with_context(|| shown.clone())?;
        source.path = path;
        source.shown = shown;
        Ok(source)
    }

    /// A source of this text, as if it were the file `src/code.rs`.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let whole = syn::parse_file(text)?;
        Ok(Self {
            name: name.to_owned(),
            path: "src/code.rs".into(),
            shown: "code.rs".to_owned(),
            text: text.to_owned(),
            shipped: without_tests(whole.clone()),
            whole,
        })
    }
}

/// All `.rs` files in a folder and below it, sorted.
pub fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }

    all.sort();
    Ok(all)
}

/// Whether a file is the module at `module` (a path without `.rs`) or lies below it.
fn is_within(file: &Path, module: &Path) -> bool {
    file.with_extension("") == module || file.starts_with(module)
}

/// The modules in files of their own that only tests compile, as paths without `.rs`.
fn test_modules(file: &Path, items: &[syn::Item]) -> Vec<PathBuf> {
    let stem = file.file_stem().unwrap_or_default();
    let is_folder_itself = ["lib", "main", "mod"].iter().any(|name| stem == *name);
    let folder = match file.parent() {
        Some(parent) if is_folder_itself => parent.to_owned(),
        _ => file.with_extension(""),
    };

    test_modules_in(&folder, items)
}

fn test_modules_in(folder: &Path, items: &[syn::Item]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for item in items {
        let syn::Item::Mod(module) = item else {
            continue;
        };

        let path = folder.join(module.ident.to_string());
        match &module.content {
            None if is_test_only(&module.attrs) => all.push(path),
            None => {}
            Some((_, items)) => all.extend(test_modules_in(&path, items)),
        }
    }

    all
}

fn without_tests(mut file: syn::File) -> syn::File {
    WithoutTests.visit_file_mut(&mut file);
    file
}

struct WithoutTests;

impl VisitMut for WithoutTests {
    fn visit_file_mut(&mut self, file: &mut syn::File) {
        file.items.retain(|item| !is_test_only(attributes(item)));
        visit_mut::visit_file_mut(self, file);
    }

    fn visit_item_mod_mut(&mut self, module: &mut syn::ItemMod) {
        if let Some((_, items)) = &mut module.content {
            items.retain(|item| !is_test_only(attributes(item)));
        }
        visit_mut::visit_item_mod_mut(self, module);
    }

    fn visit_item_impl_mut(&mut self, block: &mut syn::ItemImpl) {
        block.items.retain(|item| match item {
            syn::ImplItem::Fn(function) => !is_test_only(&function.attrs),
            syn::ImplItem::Const(constant) => !is_test_only(&constant.attrs),
            _ => true,
        });
        visit_mut::visit_item_impl_mut(self, block);
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether an item carries `#[cfg(test)]`, or `#[cfg(all(...))]` with `test` among the conditions.
fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Meta>()
                .is_ok_and(|condition| needs_test(&condition))
    })
}

fn needs_test(condition: &syn::Meta) -> bool {
    match condition {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("all") => {
            type Conditions = syn::punctuated::Punctuated<syn::Meta, syn::Token![,]>;
            list.parse_args_with(Conditions::parse_terminated)
                .is_ok_and(|all| all.iter().any(needs_test))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of functions that ship, methods included.
    fn shipped(text: &str) -> Vec<String> {
        #[derive(Default)]
        struct Names(Vec<String>);

        impl<'ast> syn::visit::Visit<'ast> for Names {
            fn visit_signature(&mut self, signature: &'ast syn::Signature) {
                self.0.push(signature.ident.to_string());
            }
        }

        let source = Source::parse("types", text).expect("it parses");
        let mut names = Names::default();
        syn::visit::Visit::visit_file(&mut names, &source.shipped);
        names.0
    }

    #[test]
    fn code_after_a_module_of_tests_ships() {
        let text = r##"
            fn before() {}
            #[cfg(test)]
            mod tests {
                const BRACES: &str = "}}} #[cfg(test)] \" }";
                fn within() {}
            }
            fn after() {}
            #[cfg(test)]
            mod laws { fn more() {} }
            fn last() {}
        "##;

        assert_eq!(shipped(text), ["before", "after", "last"]);
    }

    #[test]
    fn functions_and_methods_may_be_for_tests_too() {
        let text = "
            impl A {
                #[cfg(test)] fn peek(&self) {}
                fn get(&self) {}
            }
            mod inner {
                #[cfg(all(test, unix))] fn sample() {}
                #[cfg(any(test, unix))] fn both() {}
                #[cfg(not(test))] fn real() {}
            }
        ";

        assert_eq!(shipped(text), ["get", "both", "real"]);
    }

    #[test]
    fn the_attribute_in_a_comment_or_a_string_hides_nothing() {
        let text = "
            // #[cfg(test)]
            fn first() { let _ = \"#[cfg(test)]\"; }
            fn second() {}
        ";

        assert_eq!(shipped(text), ["first", "second"]);
    }

    #[test]
    fn modules_of_tests_are_found_in_files_of_their_own() {
        let text = "#[cfg(test)] mod laws; mod codec; mod inner { #[cfg(test)] mod tests; }";
        let items = syn::parse_file(text).expect("it parses").items;

        assert_eq!(
            test_modules(Path::new("src/http1.rs"), &items),
            [
                Path::new("src/http1/laws"),
                Path::new("src/http1/inner/tests")
            ]
        );
        assert_eq!(
            test_modules(Path::new("src/lib.rs"), &items),
            [Path::new("src/laws"), Path::new("src/inner/tests")]
        );

        assert!(is_within(Path::new("src/laws.rs"), Path::new("src/laws")));
        assert!(is_within(Path::new("src/laws/a.rs"), Path::new("src/laws")));
        assert!(!is_within(
            Path::new("src/lawsuit.rs"),
            Path::new("src/laws")
        ));
    }
}
