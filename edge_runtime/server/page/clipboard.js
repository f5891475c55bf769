// Puts text on the clipboard, also where the page is not in a secure context.

/** Returns whether it worked. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // no permission or no focus: the older way may still work
    }
  }
  const focused = document.activeElement;
  const box = document.createElement("textarea");
  box.className = "unseen";
  box.readOnly = true; // or a phone opens its keyboard
  box.value = text;
  document.body.append(box);
  box.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    box.remove();
    focused?.focus({ preventScroll: true });
  }
}
