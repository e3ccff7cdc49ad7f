//! Changes to text for `nft -f`: one table's part of a transaction.

use std::fmt::{Display, Write as _};

use super::chain::{Style, hook};
use super::object::{ChainName, Changes, Key, SetName, Value};

/// Elements in one command: nft's cost for each command is then nothing beside that for each element.
const ELEMENTS: usize = 1000;

/// The text that makes `changes` to a table. First everything goes, from what refers to what is referred to; then
/// everything comes, the other way round.
pub(crate) fn render(style: &Style, changes: &Changes) -> String {
    let mut text = String::new();
    if changes.is_empty() {
        return text;
    }
    let table = style.table();
    line(&mut text, format_args!("add table {table}"));
    elements(&mut text, table, "delete", &changes.delete);
    for (key, _) in &changes.delete {
        if let Key::Chain(chain) = key {
            line(&mut text, format_args!("flush chain {table} {chain}"));
        }
    }
    for (key, value) in &changes.delete {
        if let Key::Chain(chain) = key
            && needs_deletion(style, chain, value, changes)
        {
            line(&mut text, format_args!("delete chain {table} {chain}"));
        }
    }
    for (key, _) in &changes.delete {
        if let Key::Set(set) = key {
            line(&mut text, format_args!("delete set {table} {}", set.as_str()));
        }
    }
    for (key, _) in &changes.add {
        if let Key::Set(set) = key {
            declare_set(&mut text, style, set);
        }
    }
    for (key, _) in &changes.add {
        if let Key::Chain(chain) = key {
            declare_chain(&mut text, table, chain);
        }
    }
    for (key, _) in &changes.add {
        if let Key::Chain(chain) = key {
            for rule in style.rules(chain) {
                line(&mut text, format_args!("add rule {table} {chain} {} comment \"{}\"", rule.text, rule.comment));
            }
        }
    }
    elements(&mut text, table, "add", &changes.add);
    text
}

/// Writing to a string does not fail.
fn line(text: &mut String, line: impl Display) {
    let _ = writeln!(text, "{line}");
}

/// A chain that only gets other rules stays: with the last nat chain of a family, established connections would go.
fn needs_deletion(style: &Style, chain: &ChainName, found: &Value, changes: &Changes) -> bool {
    let Value::Chain(found) = found else { return true };
    !changes.adds(&Key::Chain(chain.clone())) || found.hook != style.chain(chain).hook
}

fn declare_set(text: &mut String, style: &Style, set: &SetName) {
    let (declaration, comment) = style.set(set);
    // A map is a set with data; nft wants its own word for each.
    let word = if set.is_plain() { "set" } else { "map" };
    let (table, name) = (style.table(), set.as_str());
    line(text, format_args!("add {word} {table} {name} {{ {declaration} comment \"{comment}\"; }}"));
}

fn declare_chain(text: &mut String, table: &str, chain: &ChainName) {
    match hook(chain) {
        Some((kind, hook, priority)) => line(
            text,
            format_args!("add chain {table} {chain} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"),
        ),
        None => line(text, format_args!("add chain {table} {chain}")),
    }
}

/// Commands for all elements among the objects, which are in the order of their keys, so that those of one set follow
/// each other.
fn elements(text: &mut String, table: &str, verb: &str, objects: &[(Key, Value)]) {
    let (mut open, mut count) = (None, 0);
    for (key, value) in objects {
        let Key::Element(set, key) = key else { continue };
        if open != Some(set) || count == ELEMENTS {
            if open.is_some() {
                text.push_str(" }\n");
            }
            let _ = write!(text, "{verb} element {table} {} {{ ", set.as_str());
            (open, count) = (Some(set), 0);
        } else {
            text.push_str(", ");
        }
        let _ = match value {
            Value::Present => write!(text, "{key}"),
            // By key alone: what somebody else put there may not be readable, and must not keep it there.
            _ if verb == "delete" => write!(text, "{key}"),
            Value::Frontend(word, name) => write!(text, "{key} comment \"{name}\" : {word}"),
            value => write!(text, "{key} : {value}"),
        };
        count += 1;
    }
    if open.is_some() {
        text.push_str(" }\n");
    }
}
