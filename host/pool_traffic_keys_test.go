package host

import userapitypes "github.com/matrix-org/dendrite/userapi/api"

// uploadKeysToClaim uploads keys of each kind that the host knows.
func (t *traffic) uploadKeysToClaim(device *userapitypes.Device) { t.uploadOneTimeKeys(device) }
