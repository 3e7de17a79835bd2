// Dialogs: to confirm what cannot be undone, to fill in a form, to give a token.

import { hasToken, setToken } from "./api.js";
import { h } from "./dom.js";

let numbers = 0;

/**
 * Show a dialog, and return what `send` returned; null where it was given up. `fields` are nodes, `send` gets the form and may throw: the
 * message is shown, and the dialog stays.
 */
export function dialog({ title, text, fields = [], action, danger = false, send = () => true }) {
  numbers += 1;
  const id = "dialog-" + numbers;
  const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
  const confirm = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id }, title),
    text && h("p", { id: id + "-text" }, text),
    fields,
    wrong,
    h("div", { class: "buttons" }, h("button", { type: "button", class: "cancel", onclick: () => element.close() }, "Cancel"), confirm),
  );
  const element = h("dialog", { "aria-labelledby": id, "aria-describedby": text ? id + "-text" : null }, form);
  document.body.append(element);
  const before = document.activeElement;
  return new Promise((resolve) => {
    let result = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      confirm.disabled = true;
      wrong.hidden = true;
      try {
        result = await send(form);
        element.close();
      } catch (error) {
        wrong.textContent = error.message;
        wrong.hidden = false;
      } finally {
        confirm.disabled = false;
      }
    });
    element.addEventListener("close", () => {
      element.remove();
      if (before?.isConnected) before.focus();
      resolve(result);
    });
    element.addEventListener("click", (event) => {
      if (event.target === element) element.close(); // beside it
    });
    element.showModal();
    if (danger) form.querySelector(".cancel").focus();
    else if (fields.length === 0) confirm.focus();
  });
}

/** A labelled field of a form. */
export function field(label, control, hint) {
  numbers += 1;
  control.id ||= "field-" + numbers;
  const described = hint ? control.id + "-hint" : null;
  if (described) control.setAttribute("aria-describedby", described);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && h("small", { id: described }, hint));
}

/** Ask for a token. Returns whether it was changed. */
export async function askToken() {
  const input = h("input", { type: "password", name: "token", autocomplete: "off", spellcheck: "false" });
  const given = await dialog({
    title: "Access token",
    text: "It is kept in this tab only, until the tab is closed. " + (hasToken() ? "Leave the field empty to forget the one that is in use." : ""),
    fields: [field("Token", input)],
    action: "Use it",
    send: () => {
      setToken(input.value);
      return true;
    },
  });
  return given === true;
}
