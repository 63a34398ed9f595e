//! What pages are made of: icons, badges, fields, notes.

use maud::{Markup, html};

/// The icons, drawn on 24 by 24. They only decorate: what they mean stands beside them in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Icon {
    Workers,
    Clouds,
    Connections,
    Events,
    Plus,
    Search,
    Back,
    Done,
    Info,
    Warning,
    Failed,
    Copy,
    Theme,
    Leave,
    Down,
    Up,
}

impl Icon {
    fn path(self) -> &'static str {
        match self {
            Icon::Workers => "M4 5h16v6H4zM4 13h16v6H4zM8 8h.01M8 16h.01M12 8h4M12 16h4",
            Icon::Clouds => "M7 18a4 4 0 0 1-.6-7.95A5.5 5.5 0 0 1 17 9.1 4.5 4.5 0 0 1 16.5 18z",
            Icon::Connections => "M4 8h13l-3.5-3.5M20 16H7l3.5 3.5",
            Icon::Events => "M5 6h.01M5 12h.01M5 18h.01M9 6h11M9 12h11M9 18h7",
            Icon::Plus => "M12 5v14M5 12h14",
            Icon::Search => "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM20 20l-4.8-4.8",
            Icon::Back => "M14.5 6l-6 6 6 6",
            Icon::Done => "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM8.2 12.3l2.6 2.6 5-5.4",
            Icon::Info => "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 11v5M12 7.8h.01",
            Icon::Warning => "M12 4 2.8 19.5h18.4zM12 10v4.5M12 17h.01",
            Icon::Failed => "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7.5v5.5M12 16.2h.01",
            Icon::Copy => "M9 9h11v11H9zM5 15H4V4h11v1",
            Icon::Theme => "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 3v18M12 7l6-1.5M12 12h9M12 17l6 1.5",
            Icon::Down => "M12 5v14M6.5 13.5 12 19l5.5-5.5",
            Icon::Up => "M12 19V5M6.5 10.5 12 5l5.5 5.5",
            Icon::Leave => "M14 4h5v16h-5M4 12h11M11.5 8l4 4-4 4",
        }
    }
}

pub(super) fn icon(icon: Icon) -> Markup {
    html! { svg.icon viewBox="0 0 24 24" aria-hidden="true" focusable="false" { path d=(icon.path()) {} } }
}

/// How a thing is. Each has a colour, and a shape for those who do not see the colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Ok,
    Info,
    Warn,
    Bad,
    Off,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Tone::Ok => "ok",
            Tone::Info => "info",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
            Tone::Off => "off",
        }
    }

    fn icon(self) -> Icon {
        match self {
            Tone::Ok => Icon::Done,
            Tone::Warn => Icon::Warning,
            Tone::Bad => Icon::Failed,
            Tone::Info | Tone::Off => Icon::Info,
        }
    }
}

/// A word in its tone.
pub(super) fn badge(tone: Tone, word: &str) -> Markup {
    html! {
        span class={ "badge " (tone.class()) } {
            svg viewBox="0 0 12 12" aria-hidden="true" focusable="false" {
                @match tone {
                    Tone::Ok => circle cx="6" cy="6" r="4" stroke="none" {},
                    Tone::Info => circle cx="6" cy="6" r="3.4" fill="none" stroke-width="1.8" {},
                    Tone::Warn => path d="M6 1.6 11 10.4H1z" stroke="none" {},
                    Tone::Bad => path d="M2.5 2.5l7 7M9.5 2.5l-7 7" fill="none" stroke-width="2" {},
                    Tone::Off => path d="M2 6h8" fill="none" stroke-width="2" {},
                }
            }
            (word)
        }
    }
}

/// A message in its tone, on top of a page.
pub(super) fn note(tone: Tone, body: Markup) -> Markup {
    // What went wrong is said at once, the rest in its turn.
    let role = if tone == Tone::Bad { "alert" } else { "status" };
    html! { div class={ "note " (tone.class()) } role=(role) { (icon(tone.icon())) div { (body) } } }
}

/// What is shown where there is nothing.
pub(super) fn empty(picture: Icon, title: &str, body: Markup) -> Markup {
    html! { div.empty { (icon(picture)) h2 { (title) } (body) } }
}

/// What is wrong with a field, and where the field is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The field's name in the form; empty where no field is to blame.
    pub(super) field: &'static str,
    /// One line that names the remedy.
    pub(super) text: String,
}

/// All that is wrong with a form, with a link to each field: what a keyboard or a screen reader meets first.
pub(super) fn wrongs(title: &str, wrongs: &[Wrong]) -> Markup {
    if wrongs.is_empty() {
        return html! {};
    }
    let body = html! {
        h2 { (title) }
        ul {
            @for wrong in wrongs {
                li { @if wrong.field.is_empty() { (wrong.text) } @else { a href={ "#" (wrong.field) } { (wrong.text) } } }
            }
        }
    };
    html! { div #wrongs tabindex="-1" { (note(Tone::Bad, body)) } }
}

/// The parts around a control: its label, its help, what is wrong with it.
pub(super) struct Field<'a> {
    pub(super) name: &'static str,
    pub(super) label: &'a str,
    pub(super) optional: bool,
    pub(super) help: Markup,
    pub(super) wrongs: &'a [Wrong],
}

impl Field<'_> {
    fn wrong(&self) -> Option<&str> {
        self.wrongs.iter().find(|wrong| wrong.field == self.name).map(|wrong| wrong.text.as_str())
    }

    /// What the control's `aria-describedby` must be.
    pub(super) fn described_by(&self) -> String {
        match self.wrong() {
            Some(_) => format!("{0}-wrong {0}-help", self.name),
            None => format!("{}-help", self.name),
        }
    }

    /// What the control's `aria-invalid` must be.
    pub(super) fn invalid(&self) -> Option<&'static str> {
        self.wrong().map(|_| "true")
    }

    /// The field with its control.
    pub(super) fn around(&self, control: Markup) -> Markup {
        html! {
            div.field {
                label for=(self.name) {
                    (self.label)
                    @if self.optional { span.optional { " (optional)" } }
                }
                (control)
                @if let Some(text) = self.wrong() {
                    p.wrong id={ (self.name) "-wrong" } { (icon(Icon::Failed)) span { (text) } }
                }
                div.help id={ (self.name) "-help" } { (self.help) }
            }
        }
    }

    /// The field with a one-line control.
    pub(super) fn input(&self, value: &str, kind: &str, attributes: Input) -> Markup {
        self.around(html! {
            input id=(self.name) name=(self.name) type=(kind) value=(value) required[attributes.required]
                maxlength=[attributes.most] placeholder=[attributes.example] autocomplete=(attributes.complete)
                autofocus[attributes.focus] readonly[attributes.fixed] spellcheck="false" autocapitalize="none"
                aria-describedby=(self.described_by()) aria-invalid=[self.invalid()] {}
        })
    }
}

/// What differs between one-line controls.
pub(super) struct Input {
    pub(super) required: bool,
    pub(super) most: Option<usize>,
    pub(super) example: Option<&'static str>,
    pub(super) complete: &'static str,
    pub(super) focus: bool,
    /// It can be read only.
    pub(super) fixed: bool,
}

impl Default for Input {
    fn default() -> Input {
        Input { required: false, most: None, example: None, complete: "off", focus: false, fixed: false }
    }
}

/// A text that is to be copied. Without JavaScript it is selected by hand, so the button is not there then.
pub(super) fn copy(id: &str, what: &str, text: &str) -> Markup {
    let many = text.contains('\n');
    html! {
        div.copy {
            @if many { pre #(id) tabindex="0" { code { (text) } } } @else { code #(id) { (text) } }
            button.button.scripted type="button" data-copy=(id) aria-label={ "Copy " (what) } {
                (icon(Icon::Copy)) span data-copy-word { "Copy" }
            }
        }
    }
}

/// A button that posts.
pub(super) fn post(action: &str, csrf: &str, class: &str, word: &str) -> Markup {
    html! {
        form method="post" action=(action) {
            (super::layout::csrf_field(csrf))
            button class={ "button " (class) } { (word) }
        }
    }
}

/// Where a list goes on. `None`: there is no such page.
pub(super) fn pager(text: &str, newer: Option<&str>, older: Option<&str>, words: (&str, &str)) -> Markup {
    html! {
        nav.pager aria-label="Pages" {
            span { (text) }
            div.actions {
                @if let Some(to) = newer { a.button.small href=(to) rel="prev" { (words.0) } }
                @if let Some(to) = older { a.button.small href=(to) rel="next" { (words.1) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_told_in_words_and_tied_to_its_control() {
        let wrongs = [Wrong { field: "name", text: "<b> is taken".into() }];
        let field =
            Field { name: "name", label: "Name", optional: true, help: html! { "help" }, wrongs: &wrongs };
        let html = field.input("\"><script>", "text", Input::default()).into_string();
        for part in [
            r#"<label for="name">Name<span class="optional"> (optional)</span></label>"#,
            r#"value="&quot;&gt;&lt;script&gt;""#,
            r#"aria-describedby="name-wrong name-help" aria-invalid="true""#,
            r#"id="name-wrong""#,
            "&lt;b&gt; is taken",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        let summary = super::wrongs("Not saved", &wrongs).into_string();
        assert!(summary.contains(r##"<a href="#name">&lt;b&gt; is taken</a>"##), "{summary}");
        assert!(summary.contains(r#"role="alert""#));
        let fine = Field { wrongs: &[], ..field };
        assert!(!fine.input("", "text", Input::default()).into_string().contains("aria-invalid"));
    }
}
