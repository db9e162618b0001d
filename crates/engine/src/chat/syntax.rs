//! What templates for Transformers write and minijinja's grammar has no word for, said in words that it has.

use minijinja::machinery::{Span, Token, Tokenizer};
use minijinja::syntax::SyntaxConfig;

/// The filter that stands for the operator `%`.
pub(super) const MODULO: &str = "_modulo";
/// The filter through which a value goes that a namespace is to keep.
pub(super) const KEPT: &str = "_kept";

/// The template in minijinja's words:
///
/// - Line breaks are line feeds, as Jinja makes them in texts and strings alike.
/// - `{% generation %}` marks what the assistant says, for training. When a prompt is made it is a block with variables of its
///   own, which is what `{% with %}` is.
/// - `a % b`, which formats if `a` is a text, is `(a)|_modulo(b)`: operators cannot be given a meaning, filters can.
/// - `{% set ns.a = b %}` is `{% set ns.a = (b)|_kept %}`, which refuses what could make a namespace hold itself.
///
/// Lines stay where they are. A template that cannot be read as tokens is left for the parser to refuse.
pub(super) fn translate(source: &str, syntax: &SyntaxConfig) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    if !source.contains("generation") && !source.contains('%') {
        return source;
    }
    let mut tokens = Tokenizer::new(&source, "", false, syntax.clone());
    let mut reader = Reader::default();
    loop {
        match tokens.next_token() {
            Ok(Some((token, span))) => reader.read(&token, span),
            Ok(None) => break,
            Err(_) => return source,
        }
    }
    reader.apply(&source)
}

/// Operands that are multiplied, divided or taken modulo, from left to right, within one pair of brackets.
#[derive(Default)]
struct Product {
    /// Where the first operand begins.
    start: Option<usize>,
    /// The right side of a `%` has begun.
    modulo: bool,
}

/// A part of the source to be replaced.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// What came before a token within its tag.
#[derive(Clone, Copy, PartialEq, Default)]
enum Before {
    /// The beginning of a block: a statement's name follows.
    Block,
    /// An operator, an opening bracket, a keyword: an operand follows.
    #[default]
    Operator,
    /// The end of an operand.
    Operand,
    /// A dot or a pipe: a name follows.
    Dot,
    /// `is`, or `is not`: the name of a test follows.
    Is,
}

/// How far a tag has come that sets something.
#[derive(Clone, Copy, PartialEq, Default)]
enum Target {
    /// It sets nothing, or a variable.
    #[default]
    None,
    /// A name follows, or a part of it.
    Name,
    /// The name has parts: it is in a namespace.
    InNamespace,
    /// Its value follows.
    Value,
}

/// Finds, token by token, what is to be replaced.
#[derive(Default)]
struct Reader {
    /// One for each bracket that is open.
    products: Vec<Product>,
    before: Before,
    /// What is set by the tag.
    target: Target,
    /// Where the last token ended.
    end: usize,
    edits: Vec<Edit>,
}

impl Reader {
    fn read(&mut self, token: &Token<'_>, span: Span) {
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let before = std::mem::replace(&mut self.before, Before::Operator);
        match token {
            Token::TemplateData(_) => {}
            Token::VariableStart => self.products = vec![Product::default()],
            Token::BlockStart => {
                self.products = vec![Product::default()];
                self.before = Before::Block;
                self.target = Target::None;
            }
            Token::Ident("set") if before == Before::Block => self.target = Target::Name,
            Token::Assign if self.products.len() == 1 => {
                self.end_product();
                self.assign(end);
            }
            Token::BlockEnd => {
                self.end_product();
                if self.target == Target::Value {
                    self.edit(self.end, self.end, format!(")|{KEPT}"));
                }
            }
            Token::Ident(name) => self.before = self.name(name, start, before),
            Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_) => self.operand(start),
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                self.operand(start);
                self.before = Before::Operator;
                self.products.push(Product::default());
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                self.end_product();
                self.products.pop();
                self.before = Before::Operand;
            }
            Token::Dot | Token::Pipe => {
                self.before = Before::Dot;
                if self.target == Target::Name {
                    self.target = Target::InNamespace;
                }
            }
            Token::Pow => {}
            Token::Minus if before != Before::Operand => self.operand_begins(start),
            Token::Mul | Token::Div | Token::FloorDiv => self.end_modulo(),
            Token::Mod => self.modulo(start, end),
            _ => self.end_product(),
        }
        self.end = end;
    }

    /// The value begins at `end`.
    fn assign(&mut self, end: usize) {
        self.target = match self.target {
            Target::InNamespace => {
                self.edit(end, end, "(".to_owned());
                Target::Value
            }
            Target::Value => Target::Value,
            Target::None | Target::Name => Target::None,
        };
    }

    fn operand_begins(&mut self, start: usize) {
        if let Some(product) = self.products.last_mut() {
            product.start.get_or_insert(start);
        }
    }

    fn operand(&mut self, start: usize) {
        self.operand_begins(start);
        self.before = Before::Operand;
    }

    /// What comes before the token that follows `name`.
    fn name(&mut self, name: &str, start: usize, before: Before) -> Before {
        match (before, name) {
            (Before::Block, "generation" | "endgeneration") => {
                let text = name.replace("generation", "with");
                self.edit(start, start + name.len(), text);
                Before::Operator
            }
            (Before::Block, _) => Before::Operator,
            (Before::Is, "not") | (Before::Operand, "is") => Before::Is,
            (Before::Is | Before::Dot, _) => Before::Operand,
            (_, "and" | "or" | "not" | "in" | "if" | "else" | "recursive") => {
                self.end_product();
                Before::Operator
            }
            _ => {
                self.operand_begins(start);
                Before::Operand
            }
        }
    }

    fn modulo(&mut self, start: usize, end: usize) {
        self.end_modulo();
        let Some(product) = self.products.last_mut() else {
            return;
        };
        if let Some(first) = product.start {
            product.modulo = true;
            self.edit(first, first, "(".to_owned());
            self.edit(start, end, format!(")|{MODULO}("));
        }
    }

    /// The right side of a `%` ends before this token.
    fn end_modulo(&mut self) {
        let open = self
            .products
            .last_mut()
            .map(|p| std::mem::take(&mut p.modulo));
        if open == Some(true) {
            self.edit(self.end, self.end, ")".to_owned());
        }
    }

    fn end_product(&mut self) {
        self.end_modulo();
        if let Some(product) = self.products.last_mut() {
            *product = Product::default();
        }
    }

    fn edit(&mut self, start: usize, end: usize, text: String) {
        self.edits.push(Edit { start, end, text });
    }

    fn apply(mut self, source: &str) -> String {
        // Stable, and a bracket closes before what follows it begins.
        self.edits.sort_by_key(|edit| edit.start);
        let (mut out, mut from) = (String::with_capacity(source.len()), 0);
        for edit in &self.edits {
            out.push_str(&source[from..edit.start]);
            out.push_str(&edit.text);
            from = edit.end;
        }
        out.push_str(&source[from..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(source: &str, want: &str) {
        assert_eq!(translate(source, &SyntaxConfig::default()), want);
    }

    #[test]
    fn modulo_is_a_filter_over_the_product_before_it() {
        becomes("{{ a % b }} 5 % 3", "{{ (a )|_modulo( b) }} 5 % 3");
        becomes(
            "{{ 1 + a*b%c%d - e }}",
            "{{ 1 + ((a*b)|_modulo(c))|_modulo(d) - e }}",
        );
        becomes(
            "{{ f(x, -a.b[0] % (c % 2)) }}",
            "{{ f(x, (-a.b[0] )|_modulo( ((c )|_modulo( 2)))) }}",
        );
        becomes(
            "{% if x|length % 2 == 0 and y %}",
            "{% if (x|length )|_modulo( 2) == 0 and y %}",
        );
        becomes(
            "{{ '%s' % 'a%b' ~ 'c' }}",
            "{{ ('%s' )|_modulo( 'a%b') ~ 'c' }}",
        );
        becomes(
            "{% set a = n % 2 is not odd %}",
            "{% set a = (n )|_modulo( 2 is not odd) %}",
        );
    }

    #[test]
    fn what_a_namespace_keeps_goes_through_a_filter() {
        becomes(
            "{%- set ns.a = b.c %2 -%}",
            "{%- set ns.a =( (b.c )|_modulo(2))|_kept -%}",
        );
        becomes(
            "{% set a = b.c %}{% set ns.a %}x{% endset %}{{ f(a=b.c) }}",
            "{% set a = b.c %}{% set ns.a %}x{% endset %}{{ f(a=b.c) }}",
        );
        becomes(
            "{% set ns.a = f(x=1), 2 %}",
            "{% set ns.a =( f(x=1), 2)|_kept %}",
        );
    }

    #[test]
    fn generation_is_with() {
        becomes(
            "{%- generation -%}{{ generation }}{% endgeneration %} generation",
            "{%- with -%}{{ generation }}{% endwith %} generation",
        );
    }

    #[test]
    fn what_is_no_template_stays() {
        becomes("{{ a % 'b }}", "{{ a % 'b }}");
        becomes("{{ % }}{{ ) % 2 }}", "{{ % }}{{ ) % 2 }}");
        becomes(
            "{% raw %}{{ a % b }}{% endraw %}{# 1 % 2 #}",
            "{% raw %}{{ a % b }}{% endraw %}{# 1 % 2 #}",
        );
        becomes("a\r\n% b\r", "a\n% b\n");
    }
}
