//! A whole small world, as one golden text.

use super::{clean, data, render};

#[test]
fn the_shop_is_lowered_as_a_whole() {
    let snapshot = clean(&data("shop.yaml"));
    insta::assert_snapshot!(render::snapshot(&snapshot));
}

#[test]
fn names_are_those_of_services_headless_pods_and_entries() {
    let snapshot = clean(&data("shop.yaml"));
    let names = snapshot.name_table("shop", &super::labels(&[("app", "front")]));
    let names: Vec<_> = names
        .iter()
        .map(|entry| format!("{} {:?} {:?}", entry.host, entry.ips, entry.short))
        .collect();
    insta::assert_snapshot!(names.join("\n"));
}

#[test]
fn the_same_tables_give_the_same_snapshot() {
    let (one, two) = (clean(&data("shop.yaml")), clean(&data("shop.yaml")));
    assert_eq!(render::snapshot(&one), render::snapshot(&two));
}
