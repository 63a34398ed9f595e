// Runs before anything is drawn, so that a chosen theme never flashes in the other one.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* Storage may be off; then the system's choice stays. */ }
document.documentElement.dataset.js = "";
