"""The web page: `server` answers the browser, `jobs` runs questions in processes of their own, `work` answers them."""
