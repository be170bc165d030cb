// before the page is shown, so that it does not flash
try {
  const theme = localStorage.getItem('timm-attn-theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch { /* a browser that keeps nothing */ }
document.documentElement.classList.add('js');
